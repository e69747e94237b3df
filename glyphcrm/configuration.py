"""What a GlyphCRM model is made of, and the four sizes it comes in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedConfig

from glyphcrm.errors import UserError, shown

POSITION_MAPS = ("paper", "release")
POSITION_INITIALIZERS = ("normal", "sinusoidal")
KERNEL_BACKENDS = ("auto", "hopper", "triton", "cpu", "reference")  # as in glyphcrm_kernels, whose import costs more
CHOICES = {
    "position_map": POSITION_MAPS,
    "position_initializer": POSITION_INITIALIZERS,
    "kernel_backend": KERNEL_BACKENDS,
}
# The least and the most that a model can be made of; a damaged configuration must not ask for the machine's memory.
SIZES = {
    "vocab_size": (5, 1 << 22),
    "num_glyphs": (5, 1 << 22),
    "hidden_size": (1, 1 << 14),
    "num_hidden_layers": (0, 256),
    "num_attention_heads": (1, 1 << 14),
    "intermediate_size": (1, 1 << 16),
    "max_position_embeddings": (1, 1 << 20),
    "type_vocab_size": (1, 1 << 10),
    "stem_channels": (1, 1 << 10),
    "glyph_channels": (1, 1 << 10),
}
FRACTIONS: dict[str, float] = {
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "layer_norm_eps"), 1),
    **dict.fromkeys(("initializer_range", "glyph_initializer_spread", "position_initializer_scale"), 100),
}
TOKEN_IDS = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
OPTIONAL = ("classifier_dropout", "pad_token_id", "label2id")
MAX_LABELS = 1 << 16
DTYPES = ("float32", "float16", "bfloat16", "float64")
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")

# Beside every saved config.json: lets `trust_remote_code=True` find this package where nothing has imported it.
LOADER_FILE = "load_glyphcrm.py"
LOADER = '''"""With this file transformers loads the model given trust_remote_code=True; the code is in the package."""

from glyphcrm import GlyphCRMConfig as GlyphCRMConfig
'''
AUTO_MAP = {"AutoConfig": f"{Path(LOADER_FILE).stem}.GlyphCRMConfig"}  # which registers all the others

# Called whenever a configuration is made; `glyphcrm.registration` waits for the first.
WHEN_MADE: list[Callable[[], None]] = []


class GlyphCRMConfig(PreTrainedConfig):
    """Configuration of a GlyphCRM model; the defaults are the paper's base model.

    Attributes:
        vocab_size: classes of masked language modelling: the first rows of the atlas. After `extend_decoder` some of
            them may have a bias of -10,000; they are never predicted.
        num_glyphs: rows of the glyph atlas, that is token ids the model can read; at least `vocab_size`.
        stem_channels: C1, channels of the stem and of the 9x9 convolutions.
        glyph_channels: C2, channels of the second residual block.
        position_map: what the two position channels hold: "paper", x and y in [-0.2, 0.2] with the
            origin at the centre, or "release", steps of 0.02 around pixel 24 as in the authors' code.
        kernel_backend: what runs the fused operations: "auto" (the Triton kernels on a GPU that they are
            built for, C on a CPU, else PyTorch), or one of them by name: "hopper" (for what those do not do, the
            Triton kernels), "triton", "cpu", "reference". It changes no weights; the environment variable
            GLYPHCRM_KERNEL_BACKEND overrides it.
        glyph_cache: whether glyph vectors are kept at inference, so that each character is encoded once.
        glyph_initializer_spread: standard deviation, over characters and before the tanh, that each glyph
            projection starts with. That of the position embeddings: in their sum characters must not drown positions.
        position_initializer: what position embeddings start from: "normal", BERT's, with a standard deviation of
            `initializer_range`, or "sinusoidal" waves with a root mean square of `position_initializer_scale`.
        glyph_fonts: names of what drew the atlas rows; each row's entry is in the model's buffer.
        tokens_sha256, bitmaps_sha256: digests that tie config, weights, and tokenizer together
            (empty in a configuration without an atlas).

    The other fields mean what they mean in `transformers.BertConfig`.

    Raises `UserError`, which is a `ValueError`, for a value that no model can be made of.
    """

    model_type = "glyphcrm"
    keys_to_ignore_at_inference = ["mlm_loss", "nsp_loss"]  # `Trainer.predict` would take them for logits

    vocab_size: int = 18_612
    num_glyphs: int = 18_612
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    glyph_initializer_spread: float = 0.02
    position_initializer: str = "normal"
    position_initializer_scale: float = 0.02
    layer_norm_eps: float = 1e-12
    stem_channels: int = 64
    glyph_channels: int = 128
    position_map: str = "paper"
    kernel_backend: str = "auto"
    glyph_cache: bool = True
    glyph_fonts: list[str] | None = None
    tokens_sha256: str = ""
    bitmaps_sha256: str = ""
    pad_token_id: int | None = 0
    unk_token_id: int = 1
    cls_token_id: int = 2
    sep_token_id: int = 3
    mask_token_id: int = 4
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        check_values({"id2label": self.id2label, "label2id": self.label2id, **kwargs})
        try:
            super().__post_init__(**kwargs)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"no configuration of a model ({error})") from error
        self._check()
        for call in WHEN_MADE:
            call()

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, with the entry that names `LOADER_FILE`."""
        return {**super().to_dict(), "auto_map": AUTO_MAP}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers; writes `LOADER_FILE`, too."""
        path = Path(save_directory, LOADER_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LOADER, encoding="utf-8")
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: else transformers would put copies of this module beside the models that it saves."""

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Do what transformers' does; raise `UserError` for a file that holds no JSON object."""
        try:
            return super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (AttributeError, RecursionError, TypeError) as error:
            raise UserError(f"{pretrained_model_name_or_path}: config.json holds no configuration") from error

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Make a configuration of a dict, with `kwargs` changed; as in transformers, those are checked like the dict.

        Raises:
            UserError: it is no dict, or has a value that no model can be made of.
        """
        if not isinstance(config_dict, dict):
            raise UserError(f"a configuration is a JSON object, not {shown(str(config_dict))}")
        made: Any = super().from_dict(config_dict, **kwargs)
        (made[0] if isinstance(made, tuple) else made)._check()
        return made

    def _check(self) -> None:
        """Refuse values of the wrong kind or size, and sizes that do not fit each other."""
        values = {name: getattr(self, name) for name in (*SIZES, *FRACTIONS, *TOKEN_IDS, "id2label", "label2id")}
        if missing := [name for name, value in values.items() if value is None and name not in OPTIONAL]:
            raise UserError(f"{missing[0]} is null; leave it out or give a value")
        check_values(values)
        for name in TOKEN_IDS:
            _check_number(name, values[name], 0, self.num_glyphs - 1, int)
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"{name} is {shown(str(value))}; give {', '.join(choices)}")
        for name in ("glyph_cache", "tie_word_embeddings"):
            if not isinstance(value := getattr(self, name), bool):
                raise UserError(f"{name} is {shown(str(value))}; give true or false")
        for name in ("hidden_act", "tokens_sha256", "bitmaps_sha256"):
            if not isinstance(value := getattr(self, name), str):
                raise UserError(f"{name} is {shown(str(value))}; give a string")
        for name in ("glyph_fonts", "architectures"):
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)
            ):
                raise UserError(f"{name} is {shown(str(value))}; give strings")
        if self.hidden_act != "gelu":
            from transformers.activations import ACT2FN  # imports torch

            if self.hidden_act not in ACT2FN:
                raise UserError(f"hidden_act is {shown(self.hidden_act)}; give one that transformers knows")
        if self.problem_type not in (None, *PROBLEMS):
            raise UserError(f"problem_type is {shown(str(self.problem_type))}; give one of {', '.join(PROBLEMS)}")
        if self.dtype is not None and str(self.dtype).removeprefix("torch.") not in DTYPES:
            raise UserError(f"dtype is {shown(str(self.dtype))}; give {', '.join(DTYPES)}")
        if self.num_glyphs < self.vocab_size:
            raise UserError(f"num_glyphs is {self.num_glyphs}; give at least vocab_size, {self.vocab_size}")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size is {self.hidden_size}; give a multiple of num_attention_heads, {self.num_attention_heads}"
            )


def check_values(values: Mapping[str, Any]) -> None:
    """Check numbers and labels in a configuration, of GlyphCRM or of a BERT, before anything is made of them.

    What is not there, or None, is left to its default. Raises `UserError` for what no model can be made of.
    """
    for name, (low, high) in SIZES.items():
        _check_number(name, values.get(name), low, high, int)
    for name, most in FRACTIONS.items():
        _check_number(name, values.get(name), 0, most, (int, float))
    _check_number("num_labels", values.get("num_labels"), 1, MAX_LABELS, int)
    for name in ("id2label", "label2id"):
        labels = values.get(name)
        if labels is not None and not (isinstance(labels, dict) and len(labels) <= MAX_LABELS):
            raise UserError(f"{name} is {shown(str(labels))}; give an object with at most {MAX_LABELS} labels")
    for key, label in (values.get("id2label") or {}).items():
        if not str(key).isdecimal():
            raise UserError(f"id2label has the id {shown(str(key))}; give whole numbers")
        if not isinstance(label, str | int):
            raise UserError(f"id2label has the label {shown(str(label))}; give strings")


def _check_number(name: str, value: Any, low: float, high: float, kind: Any) -> None:
    # True is an int to Python; NaN lies in no range.
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high):
        whole = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} is {shown(str(value))}; give {whole} from {low} to {high}")


# Sizes of the presets; "nano" is for tests.
PRESETS: dict[str, dict[str, int]] = {
    "base": {},
    "small": {
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "stem_channels": 32,
        "glyph_channels": 64,
    },
    "tiny": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "stem_channels": 16,
        "glyph_channels": 32,
    },
    "nano": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "stem_channels": 4,
        "glyph_channels": 8,
        "max_position_embeddings": 64,
    },
}


def preset(name: str, **overrides: Any) -> GlyphCRMConfig:
    """Return the configuration of a preset ("base", "small", "tiny", "nano") with some fields changed."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return GlyphCRMConfig(**{**PRESETS[name], **overrides})

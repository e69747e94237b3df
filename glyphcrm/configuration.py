"""What a GlyphCRM model is made of, and the four sizes it comes in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedConfig

from glyphcrm.config_values import (
    CHOICES,
    DTYPES,
    FRACTIONS,
    OPTIONAL,
    POSITIONS,
    PRESETS,
    PROBLEMS,
    SIZES,
    TOKEN_IDS,
    check_number,
    check_values,
)
from glyphcrm.errors import UserError, shown
from glyphcrm.loader_file import in_loader, write_loader
from glyphcrm.tokens import CLS_ID, MASK_ID, PAD_ID, SEP_ID, UNK_ID

AUTO_MAP = {"AutoConfig": in_loader("GlyphCRMConfig")}  # which registers all the others

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
    max_position_embeddings: int = POSITIONS
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
    pad_token_id: int | None = PAD_ID
    unk_token_id: int = UNK_ID
    cls_token_id: int = CLS_ID
    sep_token_id: int = SEP_ID
    mask_token_id: int = MASK_ID
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
        write_loader(Path(save_directory))
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
            check_number(name, values[name], 0, self.num_glyphs - 1, int)
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


def preset(name: str, **overrides: Any) -> GlyphCRMConfig:
    """Return the configuration of a preset ("base", "small", "tiny", "nano") with some fields changed."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return GlyphCRMConfig(**{**PRESETS[name], **overrides})

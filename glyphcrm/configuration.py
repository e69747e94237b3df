"""What a GlyphCRM model is made of, and the four sizes it comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

POSITION_MAPS = ("paper", "release")
POSITION_INITIALIZERS = ("normal", "sinusoidal")
KERNEL_BACKENDS = ("auto", "hopper", "triton", "cpu", "reference")  # as in glyphcrm_kernels, whose import costs more
CHOICES = {
    "position_map": POSITION_MAPS,
    "position_initializer": POSITION_INITIALIZERS,
    "kernel_backend": KERNEL_BACKENDS,
}

# Called whenever a configuration is made; `glyphcrm.registration` waits for the first.
WHEN_MADE: list[Callable[[], None]] = []


@strict
class GlyphCRMConfig(PreTrainedConfig):
    """Configuration of a GlyphCRM model; the defaults are the paper's base model.

    Attributes:
        vocab_size: classes that masked language modelling predicts, the first rows of the atlas.
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
        super().__post_init__(**kwargs)
        for call in WHEN_MADE:
            call()

    def validate_sizes(self) -> None:
        """Refuse sizes that do not fit each other."""
        if self.num_glyphs < self.vocab_size:
            raise ValueError(f"num_glyphs={self.num_glyphs} must be at least vocab_size={self.vocab_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}={value!r} is none of {', '.join(choices)}")


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

"""The values that a configuration may have, and those of the presets. Without transformers, which take seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

POSITIONS = 512  # tokens that a model reads at most if its configuration does not say

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
        "glyph_channels": 128,
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


def check_values(values: Mapping[str, Any]) -> None:
    """Check numbers and labels in a configuration, of GlyphCRM or of a BERT, before anything is made of them.

    What is not there, or None, is left to its default. Raises `UserError` for what no model can be made of.
    """
    for name, (low, high) in SIZES.items():
        check_number(name, values.get(name), low, high, int)
    for name, most in FRACTIONS.items():
        check_number(name, values.get(name), 0, most, (int, float))
    check_number("num_labels", values.get("num_labels"), 1, MAX_LABELS, int)
    for name in ("id2label", "label2id"):
        labels = values.get(name)
        if labels is not None and not (isinstance(labels, dict) and len(labels) <= MAX_LABELS):
            raise UserError(f"{name} is {shown(str(labels))}; give an object with at most {MAX_LABELS} labels")
    for key, label in (values.get("id2label") or {}).items():
        if not str(key).isdecimal():
            raise UserError(f"id2label has the id {shown(str(key))}; give whole numbers")
        if not isinstance(label, str | int):
            raise UserError(f"id2label has the label {shown(str(label))}; give strings")


def check_number(name: str, value: Any, low: float, high: float, kind: Any) -> None:
    """Raise `UserError` for what is no `kind` of number from `low` to `high`; None passes."""
    # True is an int to Python; NaN lies in no range.
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high):
        whole = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} is {shown(str(value))}; give {whole} from {low} to {high}")

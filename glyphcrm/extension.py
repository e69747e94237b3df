"""A trained model with rows added to its atlas: it reads more characters, and is otherwise the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from glyphcrm.checkpoint import load_atlas, load_checkpoint, read_config, save_checkpoint
from glyphcrm.errors import UserError
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling.heads import HEADS
from glyphcrm.modeling.model import GlyphCRMModel, GlyphCRMPreTrainedModel
from glyphcrm.tokenization import GlyphCRMTokenizer

MODELS: tuple[type[GlyphCRMPreTrainedModel], ...] = (GlyphCRMModel, *HEADS)
ARCHITECTURES = {model_class.__name__: model_class for model_class in MODELS}


def load_as_saved(directory: Path, **settings: Any) -> tuple[GlyphCRMPreTrainedModel, GlyphAtlas]:
    """Load a checkpoint with the heads that it was saved with, `settings` changed in its configuration, and its atlas.

    Raises:
        UserError: no GlyphCRM checkpoint, a damaged one, or one of a class that is not in `glyphcrm.modeling`.
    """
    model, _ = load_checkpoint(directory, _saved_class(directory), **settings)
    return model, load_atlas(directory)


def save_extended(model: GlyphCRMPreTrainedModel, atlas: GlyphAtlas, directory: Path) -> None:
    """Write `model`, reading `atlas` from now on, and a tokenizer for it to a new directory, whole or not at all.

    Raises:
        UserError: the directory could not be written, or the atlas has fewer rows than the model predicts.
    """
    model.set_atlas(atlas)
    with tempfile.TemporaryDirectory() as vocabulary:
        save_checkpoint(model, GlyphCRMTokenizer.from_tokens(atlas.tokens, vocabulary), directory)


def _saved_class(directory: Path) -> type[GlyphCRMPreTrainedModel]:
    """Return the class that config.json names, one of this package's: a name cannot make other code run."""
    match read_config(directory, ("GlyphCRM",)).get("architectures"):
        case [str(name), *_] if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise UserError(
        f"{directory}: no config.json there that names one of {', '.join(sorted(ARCHITECTURES))}; "
        "give a directory with a saved GlyphCRM"
    )

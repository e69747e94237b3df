"""GlyphCRM: a BERT-shaped Chinese language model that reads every character as a picture.

Importing this package registers the model and its tokenizer with transformers' Auto classes.
The models themselves, all that `glyphcrm.modeling` exports, are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glyphcrm.configuration import GlyphCRMConfig as GlyphCRMConfig
from glyphcrm.configuration import preset as preset
from glyphcrm.registration import register
from glyphcrm.tokenization import GlyphCRMTokenizer as GlyphCRMTokenizer

if TYPE_CHECKING:
    from glyphcrm.glyphs.atlas import GlyphAtlas as GlyphAtlas
    from glyphcrm.modeling import *  # noqa: F403

register()


def __getattr__(name: str) -> Any:
    if name == "GlyphAtlas":
        return importlib.import_module("glyphcrm.glyphs.atlas").GlyphAtlas
    if name.startswith("GlyphCRM"):
        return getattr(importlib.import_module("glyphcrm.modeling"), name)
    raise AttributeError(f"module 'glyphcrm' has no attribute {name!r}")

"""GlyphCRM: a BERT-shaped Chinese language model that reads every character as a picture.

Importing this package registers the model and its tokenizer with transformers' Auto classes.
Its own classes, and the models, which are all that `glyphcrm.modeling` exports, are imported when they are first asked
for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glyphcrm.registration import register

if TYPE_CHECKING:
    from glyphcrm.configuration import GlyphCRMConfig as GlyphCRMConfig
    from glyphcrm.configuration import preset as preset
    from glyphcrm.glyphs.atlas import GlyphAtlas as GlyphAtlas
    from glyphcrm.modeling import *  # noqa: F403
    from glyphcrm.tokenization import GlyphCRMTokenizer as GlyphCRMTokenizer
    from glyphcrm.version import __version__ as __version__

_HOMES = {
    "GlyphCRMConfig": "configuration",
    "preset": "configuration",
    "GlyphAtlas": "glyphs.atlas",
    "GlyphCRMTokenizer": "tokenization",
    "__version__": "version",
}

register()


def __getattr__(name: str) -> Any:
    if name in _HOMES or name.startswith("GlyphCRM"):
        return getattr(importlib.import_module(f"glyphcrm.{_HOMES.get(name, 'modeling')}"), name)
    raise AttributeError(f"module 'glyphcrm' has no attribute {name!r}")

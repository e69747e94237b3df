"""With this file transformers loads the model given trust_remote_code=True; the code is in the package."""

from glyphcrm import GlyphCRMConfig as GlyphCRMConfig
from glyphcrm import GlyphCRMTokenizer as GlyphCRMTokenizer

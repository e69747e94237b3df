"""The file beside saved models by which transformers finds this package where nothing has imported it."""

from __future__ import annotations

from pathlib import Path

LOADER_FILE = "load_glyphcrm.py"
LOADER = '''"""With this file transformers loads the model given trust_remote_code=True; the code is in the package."""

from glyphcrm import GlyphCRMConfig as GlyphCRMConfig
from glyphcrm import GlyphCRMTokenizer as GlyphCRMTokenizer
'''


def in_loader(name: str) -> str:
    """Return what an "auto_map" calls a class that `LOADER_FILE` names."""
    return f"{Path(LOADER_FILE).stem}.{name}"


def write_loader(directory: Path) -> None:
    """Write `LOADER_FILE` into a directory, which is made if it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / LOADER_FILE).write_text(LOADER, encoding="utf-8")

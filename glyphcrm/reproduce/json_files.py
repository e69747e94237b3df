"""JSON files of a reproduction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glyphcrm.glyphs.files import write_atomically


def save_json(path: Path, content: Any) -> None:
    """Write JSON for people, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def load_json(path: Path) -> Any:
    """Read what `save_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))

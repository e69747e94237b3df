"""JSON files of a reproduction."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def is_made_from(path: Path, inputs: Any) -> bool:
    """Whether `path` holds what was made from these inputs, which it keeps under "inputs"."""
    return path.exists() and load_json(path).get("inputs") == json.loads(json.dumps(inputs))


def digest(path: Path | None) -> str | None:
    """Return the SHA-256 of a file; None for none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else None


def load_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))

"""The config.json of a saved model: of which kind the model says that it is. Read without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glyphcrm.config_values import check_values
from glyphcrm.errors import UserError


def read_config(directory: Path, models: tuple[str, ...] = ("GlyphCRM", "BERT")) -> dict[str, Any]:
    """Return the config.json of one of some kinds of model; raise `UserError` if there is none that can be one."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        found = f"a {config['model_type']} model"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        config, found = {}, "no config.json there that names a model"
    if config.get("model_type") not in [name.lower() for name in models]:
        raise UserError(f"{directory}: {found}; give a directory with a saved {' or '.join(models)}")
    try:
        check_values(config)
    except UserError as error:
        raise UserError(f"{directory / 'config.json'}: {error}") from None
    return config


def architecture_of(config: dict[str, Any]) -> str | None:
    """Return the name of the class that a config.json's model was saved with, if it has one."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None

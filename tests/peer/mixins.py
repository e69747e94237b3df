"""transformers' test mixins, from the source distribution that `make test-peer` unpacks; a skip where it has not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers

PACKAGE = "transformers_tests"  # their own name, `tests`, is ours
FOLDER = Path(__file__).parents[2] / ".venv" / f"transformers-{transformers.__version__}" / "tests"
if not FOLDER.is_dir():
    pytest.skip(f"transformers' tests are not in {FOLDER}: `make test-peer` gets them", allow_module_level=True)

# What a configuration is asked to keep: fields of every model, with other values than their defaults.
COMMON_SETTINGS: dict[str, Any] = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["AnyModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
# What the mixins import, by name, but their source distribution lacks: tests of generation, of exporters, a table.
MISSING: dict[str, dict[str, Any]] = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": COMMON_SETTINGS},
}


def _package(name: str, path: list[str], content: dict[str, Any]) -> None:
    module = ModuleType(name)
    module.__path__ = path
    vars(module).update(content)
    sys.modules[name] = module


_package(PACKAGE, [str(FOLDER)], {})
for _name, _content in MISSING.items():
    _package(f"{PACKAGE}.{_name.partition('.')[0]}", [], {})
    _package(f"{PACKAGE}.{_name}", [], _content)


def mixin(module: str, name: str) -> type[Any]:
    """Return a class of one of transformers' test modules."""
    found: type[Any] = getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
    return found

"""Registration with transformers' Auto classes, each at the last moment that is early enough.

Importing anything of `transformers.models` takes a third of a second, and the modelling code several times that. A
program that uses neither should not pay for it, so:

* configuration, tokenizer and fill-mask pipeline are registered when transformers' own modules of these are imported,
  which nothing else tells;
* the models are registered when the first `GlyphCRMConfig` is made, which is how every Auto class begins.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import transformers

from glyphcrm.configuration import WHEN_MADE, GlyphCRMConfig
from glyphcrm.tokenization import GlyphCRMTokenizer


@functools.cache
def _register_models() -> None:
    from glyphcrm.modeling.heads import HEADS
    from glyphcrm.modeling.model import GlyphCRMModel

    transformers.AutoModel.register(GlyphCRMConfig, GlyphCRMModel)
    for auto_class, model_class in HEADS.items():
        getattr(transformers, auto_class).register(GlyphCRMConfig, model_class)


def _register_pipeline() -> None:
    from glyphcrm.fill_mask_pipeline import register

    register()


# What registers, by the module that has the class; transformers imports it when the class is named.
AUTO_MODULES: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": lambda: transformers.AutoConfig.register(
        GlyphCRMConfig.model_type, GlyphCRMConfig
    ),
    "transformers.models.auto.tokenization_auto": lambda: transformers.AutoTokenizer.register(
        GlyphCRMConfig, tokenizer_class=GlyphCRMTokenizer
    ),
    "transformers.pipelines": _register_pipeline,
}


class _AfterImport:
    """A finder that registers once one of `AUTO_MODULES` has been imported."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in AUTO_MODULES else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                AUTO_MODULES[name]()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Let the Auto classes know "glyphcrm": now, as far as transformers' Auto modules are there, else with them."""
    WHEN_MADE.append(_register_models)
    sys.meta_path.insert(0, _AfterImport)
    for name in AUTO_MODULES.keys() & sys.modules.keys():
        AUTO_MODULES[name]()

"""Registration with transformers' Auto classes, each at the last moment that is early enough.

Importing transformers takes seconds, anything of `transformers.models` a third more, and the modelling code several
times that. A program that uses none of them, such as `glyphcrm --help`, should not pay for it, so:

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


@functools.cache
def _register_models() -> None:
    import transformers

    from glyphcrm.configuration import GlyphCRMConfig
    from glyphcrm.modeling.heads import HEADS
    from glyphcrm.modeling.model import GlyphCRMModel

    transformers.AutoModel.register(GlyphCRMConfig, GlyphCRMModel)
    for auto_class, model_class in HEADS.items():
        getattr(transformers, auto_class).register(GlyphCRMConfig, model_class)


def _wait_for_a_configuration() -> None:
    from glyphcrm.configuration import WHEN_MADE

    WHEN_MADE.append(_register_models)


def _register_configuration() -> None:
    from transformers import AutoConfig

    from glyphcrm.configuration import GlyphCRMConfig

    AutoConfig.register(GlyphCRMConfig.model_type, GlyphCRMConfig)


def _register_tokenizer() -> None:
    from transformers import AutoTokenizer

    from glyphcrm.configuration import GlyphCRMConfig
    from glyphcrm.tokenization import GlyphCRMTokenizer

    AutoTokenizer.register(GlyphCRMConfig, tokenizer_class=GlyphCRMTokenizer)


def _register_pipeline() -> None:
    from glyphcrm.fill_mask_pipeline import register

    register()


# What registers, by the module that it needs; transformers imports its own when a class in it is named.
AUTO_MODULES: dict[str, Callable[[], None]] = {
    "glyphcrm.configuration": _wait_for_a_configuration,
    "transformers.models.auto.configuration_auto": _register_configuration,
    "transformers.models.auto.tokenization_auto": _register_tokenizer,
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
    sys.meta_path.insert(0, _AfterImport)
    for name in AUTO_MODULES.keys() & sys.modules.keys():
        AUTO_MODULES[name]()

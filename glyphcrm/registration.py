"""Registration with transformers' Auto classes, each at the last moment that is early enough.

Importing anything of `transformers.models` takes a third of a second, and the modelling code
several times that. A program that uses neither should not pay for it, so:

* configuration and tokenizer are registered when transformers' own Auto modules are imported;
* the models are registered when the first `GlyphCRMConfig` is made, which is how every Auto class begins.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register_auto_config() -> None:
    """Let `AutoConfig` know "glyphcrm"."""
    from transformers import AutoConfig

    from glyphcrm.configuration import GlyphCRMConfig

    AutoConfig.register(GlyphCRMConfig.model_type, GlyphCRMConfig)


def register_auto_tokenizer() -> None:
    """Let `AutoTokenizer` know `GlyphCRMTokenizer`."""
    from transformers import AutoTokenizer

    from glyphcrm.configuration import GlyphCRMConfig
    from glyphcrm.tokenization import GlyphCRMTokenizer

    AutoTokenizer.register(GlyphCRMConfig, slow_tokenizer_class=GlyphCRMTokenizer)


@functools.cache
def register_auto_models() -> None:
    """Let the `AutoModel` classes know the models."""
    import transformers

    from glyphcrm import modeling
    from glyphcrm.configuration import GlyphCRMConfig

    for auto_class, model_class in (
        (transformers.AutoModel, modeling.GlyphCRMModel),
        (transformers.AutoModelForPreTraining, modeling.GlyphCRMForPreTraining),
        (transformers.AutoModelForMaskedLM, modeling.GlyphCRMForMaskedLM),
        (transformers.AutoModelForNextSentencePrediction, modeling.GlyphCRMForNextSentencePrediction),
        (transformers.AutoModelForSequenceClassification, modeling.GlyphCRMForSequenceClassification),
        (transformers.AutoModelForTokenClassification, modeling.GlyphCRMForTokenClassification),
    ):
        auto_class.register(GlyphCRMConfig, model_class)


class _AfterImport:
    """A finder that calls back once a module has been imported."""

    def __init__(self, name: str, callback: Callable[[], None]) -> None:
        self.name, self.callback = name, callback

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)  # so that the next line asks the others
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then_call_back(module: ModuleType) -> Any:
            execute(module)
            self.callback()

        spec.loader.exec_module = execute_then_call_back  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register configuration and tokenizer now if transformers' Auto modules are there, else with them."""
    for name, register in (
        ("transformers.models.auto.configuration_auto", register_auto_config),
        ("transformers.models.auto.tokenization_auto", register_auto_tokenizer),
    ):
        if name in sys.modules:
            register()
        else:
            sys.meta_path.insert(0, _AfterImport(name, register))

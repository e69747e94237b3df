"""The fused add-norm in the BERTs of transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import CodeType, MethodType
from typing import Any

from glyphcrm_kernels import add_norm
from torch import Tensor, nn

from glyphcrm.errors import UserError


class BertPatch:
    """What `patch_bert` has changed, to be undone.

    Attributes:
        layers: the modules, or the classes of modules, whose `forward` is now the fused one.
    """

    def __init__(self, layers: Sequence[nn.Module | type[nn.Module]]) -> None:
        self.layers = tuple(layers)
        self._before = {layer: layer.forward for layer in layers if isinstance(layer, type)}
        for layer in self.layers:
            layer.forward = forward if isinstance(layer, type) else MethodType(forward, layer)

    def remove(self) -> None:
        """Let the layers compute as before."""
        for layer in self.layers:
            if not isinstance(layer, type):
                vars(layer).pop("forward", None)
            elif layer in self._before:
                layer.forward = self._before.pop(layer)


def patch_bert(model: nn.Module | type[nn.Module]) -> BertPatch:
    """Let the end of every sub-layer of a transformers BERT run as one fused operation.

    Dropout, residual and layer normalisation behind attention and behind the feed-forward are then `add_norm`: outputs
    are equal to rounding, the state dict is the same, and dropout falls on the same tensor with the same probability
    (its masks are others). Whatever copied these layers of BERT is patched alike: RoBERTa, ELECTRA, ERNIE, CamemBERT
    and more, in whatever they are wrapped. A layer whose normalisation or dropout has hooks on it calls them as before.

    Args:
        model: one model; or a class, such as `BertModel`. Then all models of its kind are patched, those that there are
            and those that will be made, by whatever program and with whatever head: the layers' classes are, which
            stand in the module of that class.

    Returns:
        What undoes it, by `remove()`. Copies of a patched model are patched, pickled ones are not.

    Raises:
        UserError: there is no such layer in `model`, or all of them are patched.
    """
    layers: list[Any]
    if isinstance(model, type):
        name, layers = model.__name__, _layer_classes(model)
    else:
        name, layers = type(model).__name__, [layer for layer in model.modules() if _ends_a_sub_layer(layer)]
    if not layers:
        raise UserError(
            f"{name} has no layer that computes LayerNorm(dropout(dense(x)) + residual) as BERT's do, "
            "or they are patched"
        )
    return BertPatch(layers)


def forward(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
    """Compute what BertSelfOutput and BertOutput do; its name is theirs, by which pickle finds theirs again."""
    norm, dropout = self.LayerNorm, self.dropout
    hidden_states = self.dense(hidden_states)
    if dropout.p == 1 or not (_is_as_in_bert(norm, nn.LayerNorm) and _is_as_in_bert(dropout, nn.Dropout)):
        return norm(dropout(hidden_states) + input_tensor)
    settings = {"p": dropout.p, "eps": norm.eps, "training": dropout.training}
    return add_norm(hidden_states, input_tensor, norm.weight, norm.bias, **settings)


def _layer_classes(model_class: type[nn.Module]) -> list[type[nn.Module]]:
    """Return the classes of such layers in the modules of a class and of those that it inherits from."""
    modules = dict.fromkeys(sys.modules.get(parent.__module__) for parent in model_class.__mro__)
    named = [thing for module in modules if module is not None for thing in vars(module).values()]
    layers = [thing for thing in named if isinstance(thing, type) and issubclass(thing, nn.Module)]
    # What only inherits its `forward` gets it from one of the others.
    return [layer for layer in dict.fromkeys(layers) if "forward" in vars(layer) and _computes_as_in_bert(layer)]


def _ends_a_sub_layer(layer: nn.Module) -> bool:
    parts = dict(layer.named_children())
    return (
        {name: type(part) for name, part in parts.items() if name != "dense"} == LAYERS
        and "dense" in parts
        and "forward" not in vars(layer)
        and _computes_as_in_bert(type(layer))
        and parts["LayerNorm"].weight is not None
        and parts["LayerNorm"].bias is not None
    )


def _computes_as_in_bert(layer_class: type[nn.Module]) -> bool:
    code = getattr(layer_class.forward, "__code__", None)
    return code is not None and _meaning(code) == _meaning(_as_in_bert.__code__)


def _is_as_in_bert(layer: Any, kind: type[nn.Module]) -> bool:
    """Whether a layer is no more than it says: no adapter in its place, no hook, all its weights."""
    is_unhooked = "forward" not in vars(layer) and not (layer._forward_hooks or layer._forward_pre_hooks)
    return type(layer) is kind and is_unhooked and all(weight is not None for weight in layer._parameters.values())


LAYERS: dict[str, type[nn.Module]] = {"LayerNorm": nn.LayerNorm, "dropout": nn.Dropout}


def _as_in_bert(self, hidden_states, input_tensor):  # type: ignore[no-untyped-def]
    # What transformers' sub-layers end in, letter by letter: a layer is known by what it computes, not by its name.
    hidden_states = self.dense(hidden_states)
    hidden_states = self.dropout(hidden_states)
    hidden_states = self.LayerNorm(hidden_states + input_tensor)
    return hidden_states


def _meaning(code: CodeType) -> tuple[object, ...]:
    return code.co_code, code.co_names, code.co_varnames

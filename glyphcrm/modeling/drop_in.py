"""The fused add-norm in the BERTs of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from types import CodeType, MethodType
from typing import Any

from glyphcrm_kernels import add_norm
from torch import Tensor, nn

from glyphcrm.errors import UserError


class BertPatch:
    """What `patch_bert` has changed, to be undone.

    Attributes:
        layers: the modules whose `forward` is now the fused one.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = tuple(layers)

    def remove(self) -> None:
        """Let the layers compute as before."""
        for layer in self.layers:
            vars(layer).pop("forward", None)


def patch_bert(model: nn.Module) -> BertPatch:
    """Let the end of every sub-layer of a transformers BERT run as one fused operation.

    Dropout, residual and layer normalisation behind attention and behind the feed-forward are then `add_norm`: outputs
    are equal to rounding, the state dict is the same, and dropout falls on the same tensor with the same probability
    (its masks are others). Whatever copied these layers of BERT is patched alike: RoBERTa, ELECTRA, ERNIE, CamemBERT
    and more, in whatever they are wrapped. A layer whose normalisation or dropout has hooks on it calls them as before.

    Returns:
        What undoes it, by `remove()`. Copies of a patched model are patched, pickled ones are not.

    Raises:
        UserError: there is no such layer in `model`, or all of them are patched.
    """
    layers = [layer for layer in model.modules() if _ends_a_sub_layer(layer)]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no layer that computes LayerNorm(dropout(dense(x)) + residual) as BERT's do, "
            "or they are patched"
        )
    for layer in layers:
        layer.forward = MethodType(forward, layer)
    return BertPatch(layers)


def forward(self: Any, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
    """Compute what BertSelfOutput and BertOutput do; its name is theirs, by which pickle finds theirs again."""
    norm, dropout = self.LayerNorm, self.dropout
    hidden_states = self.dense(hidden_states)
    if dropout.p == 1 or not (_is_unhooked(norm) and _is_unhooked(dropout)):
        return norm(dropout(hidden_states) + input_tensor)
    settings = {"p": dropout.p, "eps": norm.eps, "training": dropout.training}
    return add_norm(hidden_states, input_tensor, norm.weight, norm.bias, **settings)


def _ends_a_sub_layer(layer: nn.Module) -> bool:
    parts = dict(layer.named_children())
    return (
        {name: type(part) for name, part in parts.items() if name != "dense"} == LAYERS
        and "dense" in parts
        and "forward" not in vars(layer)
        and _meaning(type(layer).forward.__code__) == _meaning(_as_in_bert.__code__)
        and parts["LayerNorm"].weight is not None
        and parts["LayerNorm"].bias is not None
    )


def _is_unhooked(layer: nn.Module) -> bool:
    return "forward" not in vars(layer) and not (layer._forward_hooks or layer._forward_pre_hooks)


LAYERS: dict[str, type[nn.Module]] = {"LayerNorm": nn.LayerNorm, "dropout": nn.Dropout}


def _as_in_bert(self, hidden_states, input_tensor):  # type: ignore[no-untyped-def]
    # What transformers' sub-layers end in, letter by letter: a layer is known by what it computes, not by its name.
    hidden_states = self.dense(hidden_states)
    hidden_states = self.dropout(hidden_states)
    hidden_states = self.LayerNorm(hidden_states + input_tensor)
    return hidden_states


def _meaning(code: CodeType) -> tuple[object, ...]:
    return code.co_code, code.co_names, code.co_varnames

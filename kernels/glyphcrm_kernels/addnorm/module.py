"""Add-norm as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glyphcrm_kernels.addnorm.api import add_norm


class AddNorm(nn.LayerNorm):
    """Dropout, residual and layer normalisation in one pass, with an optional third input gathered by index.

    In a BERT-like block it replaces the dropout, the addition and the `nn.LayerNorm` behind a sub-layer; its
    state dict is that of the `nn.LayerNorm`.

    Args:
        d: width.
        p: dropout probability, on the sub-layer's output, in training.
        eps: added to the variance.
        device, dtype: of weight and bias.
    """

    def __init__(
        self,
        d: int,
        p: float = 0.0,
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d, eps=eps, device=device, dtype=dtype)
        self.p = p

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        residual: Tensor,
        skip: Tensor | None = None,
        index: Tensor | None = None,
        backend: str = "auto",
    ) -> Tensor:
        """Return ``LayerNorm(dropout(x) + residual + skip[index])``; shapes, dtypes and errors as in `add_norm`."""
        return add_norm(
            x,
            residual,
            self.weight,
            self.bias,
            skip=skip,
            index=index,
            p=self.p,
            eps=self.eps,
            training=self.training,
            backend=backend,
        )

    def extra_repr(self) -> str:
        """Show the dropout beside what `nn.LayerNorm` shows."""
        return f"{super().extra_repr()}, p={self.p}"

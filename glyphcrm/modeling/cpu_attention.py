"""Attention with dropout on a CPU, in the form of transformers' attention interface."""

from __future__ import annotations

from glyphcrm_kernels.attention_cpu import attention_cpu
from torch import Tensor, nn


def cpu_dropout_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return the context ``(B, Q, heads, head size)``.

    Args:
        module: not used.
        query: ``(B, heads, Q, head size)``.
        key: ``(B, heads, T, head size)``, and so is `value`.
        attention_mask: not used: there must be no padding.
        cu_seq_lens_q, cu_seq_lens_k: of a packed row, as in `packed_sdpa_attention`.
    """
    asked, read = (None if ends is None else ends.diff().tolist() for ends in (cu_seq_lens_q, cu_seq_lens_k))
    lengths = {"query_lengths": asked, "key_lengths": read}
    return attention_cpu(query, key, value, scaling=scaling, p=dropout, **lengths), None

"""The stem's activation, drawn again for the first convolution's backward in the place of being kept for it.

The 48 x 48 activation is more than a third of what HanGlyph would keep for its backward (0.6 MB a character of `base`),
and the look-up of glyph_stem_cpu.py makes it again in some 3 % of the time of HanGlyph's backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def redrawing(
    activation: Tensor, draw: Callable[[], Tensor], sources: Sequence[Tensor]
) -> AbstractContextManager[object]:
    """Return a context in which an operation that would save `activation` does not, and calls `draw` in its backward.

    Args:
        activation: what `draw` returned.
        draw: makes it again, bit for bit, without gradients.
        sources: the parameters that it depends on; a change of them before the backward is a RuntimeError.
    """
    address, shape = activation.data_ptr(), activation.shape
    versions = [source._version for source in sources]

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.data_ptr() == address and tensor.shape == shape else tensor

    def unpack(packed: Tensor | None) -> Tensor:
        if packed is not None:
            return packed
        if [source._version for source in sources] != versions:
            raise RuntimeError("the stem's parameters were modified in place between HanGlyph's forward and backward")
        return draw()

    return saved_tensors_hooks(pack, unpack)

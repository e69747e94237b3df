"""PyTorch's convolution as an operator: what compilers ask of one, and a graph that does not know how many images."""

from __future__ import annotations

import torch
from glyphcrm_kernels import glyph_conv
from glyphcrm_kernels.conv.direct import direct_conv, direct_conv_backward
from torch import Tensor

QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")  # the graph below is the rest


def test_operators_keep_their_promises() -> None:
    """Nothing is written to, and shapes and memory order are those of tensors without values."""
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 4, 3, 3, requires_grad=True), torch.randn(8, requires_grad=True)
    for x in (torch.randn(3, 4, 6, 6), torch.randn(3, 6, 6, 4).permute(0, 3, 1, 2)):
        torch.library.opcheck(direct_conv.custom, (x.requires_grad_(), weight, bias, 1), test_utils=QUICK)
    dy, x = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 6, 6)
    for need_x in (True, False):
        torch.library.opcheck(direct_conv_backward.custom, (dy, x, weight.detach(), 0, need_x), test_utils=QUICK)


def test_a_graph_that_does_not_know_how_many_images_there_are() -> None:
    """Of pictures in channels-last order, whose features are flattened: values and gradients, one image and many."""
    torch.manual_seed(0)
    pictures = torch.randn(20, 12, 12, 4).permute(0, 3, 1, 2)
    weight, bias = torch.randn(8, 4, 3, 3, requires_grad=True), torch.randn(8, requires_grad=True)

    def features(ids: Tensor) -> Tensor:
        distinct = torch.unique(ids)
        torch._check(distinct.shape[0] > 0)
        return glyph_conv(pictures[distinct], weight, bias, relu=True, pool=True, padding=1).flatten(1)

    compiled = torch.compile(features, fullgraph=True, backend="aot_eager")
    for ids in (torch.tensor([3, 7, 3, 5]), torch.tensor([4, 4, 4, 4])):
        found, expected = (
            [y, *torch.autograd.grad(y.square().sum(), (weight, bias))] for y in (compiled(ids), features(ids))
        )
        torch.testing.assert_close(found, expected)

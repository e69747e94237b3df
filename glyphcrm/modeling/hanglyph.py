"""HanGlyph: from a character's picture to three vectors (DESIGN: two residual blocks, 9x9 and 3x3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from glyphcrm_kernels import glyph_conv, glyph_stem, glyph_stem_conv, unpack_bits
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.glyphs.raster import IMAGE_SIZE, PACKED_BYTES
from glyphcrm.modeling.backend import kernel_backend
from glyphcrm.modeling.whitening import whitening_basis

PIECE = 256  # characters at once where no gradients are wanted, which bounds the memory
# Where they are, on a CPU: the buffers of the backward then fit into the memory that the encoder's has freed.
CPU_PIECE = 128


class GlyphVectors(NamedTuple):
    """What HanGlyph says of a character, each ``(U, d)``: the glyph vector and the two skips."""

    vector: Tensor
    skip1: Tensor
    skip2: Tensor


class StillFeatures(NamedTuple):
    """The `HanGlyph.features` of all pictures, ``(N, 288)``: row i, of N or more, is that of picture i."""

    bitmaps: Tensor
    block1: Tensor
    block2: Tensor


def position_map(kind: str) -> Tensor:
    """Return the position channels x and y as ``(2, 48, 48)`` float32, x to the right and y upwards.

    `kind` is as `position_map` of `GlyphCRMConfig`.
    """
    pixels = torch.arange(IMAGE_SIZE, dtype=torch.float32)
    from_centre = (pixels / (IMAGE_SIZE - 1) - 0.5) * 0.4
    axis = from_centre if kind == "paper" else (pixels - IMAGE_SIZE // 2) * 0.02
    return torch.stack([axis.expand(IMAGE_SIZE, -1), -axis.unsqueeze(1).expand(-1, IMAGE_SIZE)])


def in_pieces(make: Callable[[Tensor], tuple[Tensor, ...]], pieces: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors that `make` returns for each piece of some rows, joined over the pieces."""
    made = [make(piece) for piece in pieces]
    return [torch.cat(parts) for parts in zip(*made, strict=True)] if len(made) > 1 else list(made[0])


def distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values of `ids`, which has some, ``(U,)``, and for each id its place among them."""
    values, index = torch.unique(ids, return_inverse=True)
    if not torch.jit.is_tracing():
        torch._check(values.shape[0] > 0)  # which a graph without values cannot know
    return values, index


class GlyphTable(nn.Module):
    """The atlas inside the model: ``bitmaps (N, 288)`` uint8 and ``sources (N,)`` uint8 (see GlyphAtlas).

    Training may read characters in several fonts: `in_fonts` ``(F * N, 288)`` uint8 are the pictures of all of them,
    the atlas' own first. They are no part of the weights, and nothing else reads them.
    """

    bitmaps: Tensor
    sources: Tensor
    in_fonts: Tensor | None

    def __init__(self, config: GlyphCRMConfig) -> None:
        super().__init__()
        self.register_buffer("bitmaps", torch.zeros(config.num_glyphs, PACKED_BYTES, dtype=torch.uint8))
        self.register_buffer("sources", torch.zeros(config.num_glyphs, dtype=torch.uint8))
        self.in_fonts = None

    def forward(self) -> Tensor:
        """Return the bitmaps; they may be offloaded, and arrive when they are asked for so."""
        return self.bitmaps

    def read_in_fonts(self, pictures: Tensor | None) -> None:
        """Set `in_fonts`, or with None read one font again; there is no buffer then (offloading takes no None)."""
        del self.in_fonts
        if pictures is None:
            self.in_fonts = None
        else:
            self.register_buffer("in_fonts", pictures, persistent=False)

    def all_pictures(self) -> Tensor:
        """Return all that a training may read: ``in_fonts``, or with one font the bitmaps."""
        return self.bitmaps if self.in_fonts is None else self.in_fonts

    def pictures(self, rows: Tensor, bitmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Return what HanGlyph is to read of the atlas `rows` ``(U,)`` int64: rows, and the bitmaps they are rows of.

        These are the arguments, but in training with several fonts: then each row's font is drawn at random, all being
        equally likely, from the device's generator, as dropout is.
        """
        if not self.training or self.in_fonts is None:
            return rows, bitmaps
        fonts = torch.randint(len(self.in_fonts) // len(bitmaps), rows.shape, device=rows.device)
        return fonts * len(bitmaps) + rows, self.in_fonts


class HanGlyph(GradientCheckpointingLayer):
    """The glyph CNN: stem, a residual block of 9x9 and one of 3x3 convolutions, three projections."""

    positions: Tensor

    def __init__(self, config: GlyphCRMConfig) -> None:
        super().__init__()
        c1, c2, d = config.stem_channels, config.glyph_channels, config.hidden_size
        self.stem = nn.Conv2d(3, c1, 3, padding=1)
        self.block1 = nn.ModuleList(nn.Conv2d(c1, c1, 9) for _ in range(3))
        self.expand = nn.Conv2d(c1, c2, 3, padding=1)
        self.block2 = nn.ModuleList(nn.Conv2d(c2, c2, 3) for _ in range(3))
        self.vector = nn.Linear(c2 * 3 * 3, d)
        self.skip1 = nn.Linear(c1 * 12 * 12, d)
        self.skip2 = nn.Linear(c2 * 3 * 3, d)
        self.config = config
        self.still: StillFeatures | None = None
        self.register_buffer("positions", position_map(config.position_map), persistent=False)
        self.register_load_state_dict_post_hook(_with_positions)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        was_meta = self.positions.is_meta
        super()._apply(*args, **kwargs)
        if was_meta and not self.positions.is_meta:  # `to_empty` leaves what was in memory
            self.fill_positions(self.positions.device)
        return self

    def fill_positions(self, device: torch.device) -> None:
        """Make the position channels on `device`; no state dict holds them."""
        assert isinstance(self.config, GlyphCRMConfig)
        self.positions = position_map(self.config.position_map).to(device, self.positions.dtype)

    def features(self, rows: Tensor, bitmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the projections read: ``(U, C1*144)`` of block 1 and ``(U, C2*9)`` of block 2."""
        backend = kernel_backend(self.config, device=rows.device)
        first, shortcut = self._first_convolutions(rows, bitmaps, backend)
        block1 = _rest_of_block(first, shortcut, self.block1, backend)
        expanded = _conv(block1, self.expand, backend)
        first = _conv(expanded, self.block2[0], backend)
        block2 = _rest_of_block(first, F.max_pool2d(expanded, 2), self.block2, backend)
        # Flattened channel by channel, as the released checkpoints expect.
        return block1.flatten(1), block2.flatten(1)

    def _first_convolutions(self, rows: Tensor, bitmaps: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        """Return ``relu(conv1(stem))`` of block 1, and the stem's pooled shortcut."""
        stem, convolution = self.stem, self.block1[0]
        assert isinstance(stem.weight, Tensor)
        if is_plain(stem) and is_plain(convolution):
            weights = (*_weights(stem), self.positions, *_weights(convolution))
            return glyph_stem_conv(rows, bitmaps, *weights, backend=backend)
        if is_plain(stem):
            of_stem = kernel_backend(self.config, "glyph_stem", rows.device)
            activation, shortcut = glyph_stem(rows, bitmaps, *_weights(stem), self.positions, backend=of_stem)
        else:
            ink = unpack_bits(bitmaps[rows], stem.weight.dtype)
            channels = self.positions.to(ink.dtype).expand(len(rows), -1, -1, -1)
            activation = F.relu(stem(torch.cat([ink, channels], 1)))
            shortcut = F.max_pool2d(activation, 2)
        return _conv(activation, convolution, backend), shortcut

    def forward(self, rows: Tensor, bitmaps: Tensor) -> GlyphVectors:
        """Return the three vectors of each wanted atlas row.

        Args:
            rows: ``(U,)`` int64, the distinct characters of a batch.
            bitmaps: ``(N, 288)`` uint8, the packed atlas.
        """
        if self.still is not None and bitmaps is self.still.bitmaps:
            block1, block2 = self.still.block1[rows], self.still.block2[rows]
        else:
            is_whole = rows.is_cuda or torch.compiler.is_compiling() or torch.jit.is_tracing()
            pieces = 1 if is_whole else max(1, math.ceil(len(rows) / CPU_PIECE))
            parts = [rows] if pieces == 1 else rows.chunk(pieces)
            block1, block2 = in_pieces(lambda piece: self.features(piece, bitmaps), parts)
        projected = (self.vector(block2), self.skip1(block1), self.skip2(block2))
        return GlyphVectors(*map(torch.tanh, projected))

    @torch.no_grad()
    def all_features(self, rows: Tensor, bitmaps: Tensor) -> list[Tensor]:
        """As `features`, without gradients and some characters at a time."""
        return in_pieces(lambda piece: self.features(piece, bitmaps), rows.split(PIECE))

    @torch.no_grad()
    def all_vectors(self, rows: Tensor, bitmaps: Tensor) -> GlyphVectors:
        """As `forward`, without gradients and some characters at a time."""
        return GlyphVectors(*in_pieces(lambda piece: self(piece, bitmaps), rows.split(PIECE)))

    def convolutions(self) -> list[nn.Parameter]:
        """Return the parameters of all convolutions."""
        return [p for module in self.modules() if isinstance(module, nn.Conv2d) for p in module.parameters()]

    @torch.no_grad()
    def whiten_projections(self, rows: Tensor, bitmaps: Tensor, spread: float) -> None:
        """Let the three vectors of the given glyphs start out centred, of one scale, and uncorrelated.

        Convolutions of ReLUs over pictures that are mostly alike give features with a large common
        part, and what tells characters apart lies in few directions (an effective rank of 16 at 288
        features, measured on `tiny`). Through random projections all characters would look alike to
        the encoder. So each projection starts as a random rotation of the whitened features.

        `rows` ``(U,)`` int64 are a sample of characters, best some times the width d; `spread` is the standard
        deviation of each output over the sample, before the tanh.
        """
        block1, block2 = self.all_features(rows, bitmaps)
        for projection, features in ((self.vector, block2), (self.skip1, block1), (self.skip2, block2)):
            _whiten(projection, features, spread)


def _with_positions(hanglyph: nn.Module, _: object) -> None:
    """Let a HanGlyph from the meta device have its position channels, too, once it has been given weights."""
    assert isinstance(hanglyph, HanGlyph)
    weight = hanglyph.stem.weight
    if hanglyph.positions.is_meta and isinstance(weight, Tensor) and not weight.is_meta:
        hanglyph.fill_positions(weight.device)


def _whiten(projection: nn.Linear, features: Tensor, spread: float) -> None:
    """Set weights and bias so that the outputs for `features` ``(U, f)`` are white, see `whiten_projections`."""
    mean, directions = whitening_basis(features, len(projection.weight))
    rotation = nn.init.orthogonal_(directions.new_empty(len(projection.weight), directions.shape[1]))
    weight = spread * nn.functional.normalize(rotation, dim=1) @ directions.T
    projection.weight.copy_(weight)
    assert projection.bias is not None
    projection.bias.copy_(-weight @ mean)


def _rest_of_block(first: Tensor, shortcut: Tensor, convolutions: nn.ModuleList, backend: str) -> Tensor:
    """Return ``pool(relu(conv3(relu(conv2(first))) + shortcut))``, without padding; `first` is ``relu(conv1(x))``."""
    _, second, third = convolutions
    return _conv(_conv(first, second, backend), third, backend, residual=shortcut, pool=True)


def _conv(
    x: Tensor, convolution: nn.Module, backend: str, residual: Tensor | None = None, pool: bool = False
) -> Tensor:
    if is_plain(convolution):
        assert isinstance(convolution, nn.Conv2d) and isinstance(convolution.padding, tuple)
        sizes: dict[str, Any] = {"pool": pool, "padding": convolution.padding[0]}
        return glyph_conv(x, *_weights(convolution), residual=residual, relu=True, backend=backend, **sizes)
    y = convolution(x)
    y = F.relu(y if residual is None else y + residual)
    return F.max_pool2d(y, 2) if pool else y


PLAIN_LAYERS = (HanGlyph, nn.Conv2d, nn.Linear, nn.ModuleList)


def is_plain(layer: nn.Module) -> bool:
    """Whether HanGlyph or a layer of it is no more than its weights, which the kernels may then read.

    Else it has to be called: an adapter in its place, a forward hook, weights that arrive when they are needed.
    """
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return type(layer) in PLAIN_LAYERS and "forward" not in layer.__dict__ and not any(hooks)


def _weights(convolution: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
    return convolution.weight, convolution.bias


def he_std(convolution: nn.Conv2d) -> float:
    """Standard deviation of He initialisation, ``sqrt(2 / fan_in)`` (arXiv:1502.01852, eq. 10)."""
    return math.sqrt(2 / (convolution.in_channels * math.prod(convolution.kernel_size)))

"""Glyph stem as a layer."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from glyphcrm_kernels.stem.api import glyph_stem
from glyphcrm_kernels.stem.reference import IMAGE_SIZE

FARTHEST = 0.2  # from the centre, in the position channels


class GlyphStem(nn.Conv2d):
    """From packed pictures to C channels: 3x3 convolution of ink and position, ReLU, and max pooling beside it.

    Its weights are those of an ``nn.Conv2d(3, C, 3, padding=1)``: state dict, initialisation, shapes.

    Args:
        channels: C.
        position_map: ``(2, 48, 48)``, the position channels; if not given, x to the right and y upwards,
            from -0.2 to 0.2. It is no part of the state dict. A layer from the meta
            device has it as soon as it has weights, unless that of the caller was there, too.
        device, dtype: of weight and bias, the device also of the position channels.
    """

    position_map: Tensor

    def __init__(
        self,
        channels: int,
        position_map: Tensor | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(3, channels, 3, padding=1, device=device, dtype=dtype)
        if position_map is None:
            axis = torch.linspace(-FARTHEST, FARTHEST, IMAGE_SIZE, device="cpu")
            position_map = torch.stack([axis.expand(IMAGE_SIZE, -1), -axis.unsqueeze(1).expand(-1, IMAGE_SIZE)])
        self.register_buffer("position_map", position_map.to(self.weight.device), persistent=False)
        self._first_map = position_map
        self.register_load_state_dict_post_hook(_fill_if_meta)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        was_meta = self.position_map.is_meta
        super()._apply(*args, **kwargs)
        if was_meta and not self.position_map.is_meta:  # `to_empty` leaves what was in memory
            _fill(self)
        return self

    def forward(  # type: ignore[override]
        self, rows: Tensor, bitmaps: Tensor, backend: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        """Return the activation and the pooled shortcut; shapes, dtypes and errors as in `glyph_stem`."""
        assert self.bias is not None
        return glyph_stem(rows, bitmaps, self.weight, self.bias, self.position_map, backend=backend)


def _fill(stem: GlyphStem) -> None:
    """Let a stem from the meta device have its position channels, too, once it has memory for weights."""
    if not stem.weight.is_meta and not stem._first_map.is_meta:
        stem.position_map = stem._first_map.to(stem.weight.device)


def _fill_if_meta(stem: nn.Module, _: object) -> None:
    if isinstance(stem, GlyphStem) and stem.position_map.is_meta:
        _fill(stem)

"""The paper profile's FLOPs against PyTorch's own count over the real model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.operations import H100, operations
from glyphcrm.configuration import preset
from glyphcrm.modeling import GlyphCRMForPreTraining


def test_flops_are_those_of_the_model() -> None:
    """Forward pass of a small model, every product and convolution counted as it runs."""
    config = preset("nano", vocab_size=50, num_glyphs=60, kernel_backend="reference")
    model = GlyphCRMForPreTraining(config)
    sequences, length, distinct = 2, 40, 7
    masked = round(0.15 * sequences * length)
    with FlopCounterMode(display=False) as counter:
        model(
            glyph_ids=torch.arange(5, 5 + distinct),
            glyph_index=torch.randint(0, distinct, (sequences, length)),
            labels=torch.randint(0, 50, (sequences, length)),
            label_index=torch.arange(masked),
            next_sentence_label=torch.tensor([0, 1]),
        )
    next_sentence = 2 * sequences * config.hidden_size * (config.hidden_size + 2)  # not in the profile
    expected = sum(line.forward_flops for line in operations(config, sequences, length, distinct))
    assert counter.get_total_flops() == pytest.approx(expected + next_sentence, rel=1e-6)


def test_base_model_does_the_work_that_the_design_counts() -> None:
    """1.106 GMAC an image and 0.0945 GMAC a token (DESIGN); fusing never adds bytes."""
    lines = operations(preset("base"), 32, 512, 1700)
    images = sum(line.forward_flops for line in lines if "convolutions" in line.name or "projection" in line.name)
    assert images / 2 / 1700 == pytest.approx(1.106e9, rel=0.01)
    assert all(line.fused_bytes <= line.bytes and line.seconds(H100) > 0 for line in lines)

"""The two models of a comparison, pre-training's step of each, and HanGlyph alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from glyphcrm_kernels import glyph_stem
from torch import Tensor, nn
from transformers import BertForPreTraining, PreTrainedModel

from bench.clock import seconds_by_turns
from bench.throughput.material import Batch
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining, GlyphCRMModel
from glyphcrm.modeling.bert import bert_config
from glyphcrm.modeling.hanglyph import CPU_PIECE, in_pieces
from glyphcrm.pretraining.objective import PretrainingObjective
from glyphcrm.tokens import FIRST_ORDINARY_ID
from glyphcrm.training.graph import Graphs
from glyphcrm.training.loop import Step
from glyphcrm.training.machine import Machine
from glyphcrm.training.optimizer import OptimizerSettings, make_optimizer

LEARNING_RATE = 1e-4  # the paper's
TOLERANCE = 1e-4  # of a loss
GRADIENT_TOLERANCE = 1e-3  # relative; rounding decides a ReLU or the maximum of a window here and there
NOTHING = 1e-9  # a dropout that is on and drops nothing
PROBE = 64  # characters that decide which memory order is the faster one
ORDERS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
CPU = Machine(torch.device("cpu"))


def build_glyphcrm(config: GlyphCRMConfig, atlas: GlyphAtlas) -> GlyphCRMForPreTraining:
    """Return a new model in training mode, initialised as pre-training does."""
    torch.manual_seed(0)
    return GlyphCRMForPreTraining.from_atlas(config, atlas).train()


def build_bert(config: GlyphCRMConfig) -> BertForPreTraining:
    """Return transformers' own BERT of the same sizes and vocabulary, in training mode."""
    torch.manual_seed(0)
    return BertForPreTraining(bert_config(config, attn_implementation="sdpa")).train()


def bert_arguments(batch: Batch) -> Batch:
    """Return a collator's batch as BERT takes it: padded ids, and labels from which it makes logits everywhere."""
    names = ("input_ids", "attention_mask", "token_type_ids", "labels", "next_sentence_label")
    return {name: batch[name] for name in names}


def check_finite(name: str, model: nn.Module, batch: Batch) -> None:
    """Fail unless a forward and backward pass gives a finite loss and finite gradients."""
    loss = model(**batch).loss
    loss.backward()
    assert math.isfinite(loss.item()), f"{name}: the loss of a training step is {loss.item()}"
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    model.zero_grad(set_to_none=True)
    assert not bad, f"{name}: gradients that are not finite: {', '.join(bad)}"


def check_backends(model: GlyphCRMForPreTraining, batch: Batch) -> None:
    """Fail unless the chosen kernels have the loss and the gradients of the reference, with nothing dropped.

    The loss alone says little about a new model, whose predictions hardly depend on what it reads.
    """
    with _nothing_dropped(model):
        loss, gradients = _results(model, batch)
        with patch.object(model.config, "kernel_backend", "reference"):
            plain_loss, plain_gradients = _results(model, batch)
    losses = f"GlyphCRM's fast path has loss {loss:.6f}, its reference {plain_loss:.6f}"
    assert abs(loss - plain_loss) <= TOLERANCE, losses
    error = float((gradients - plain_gradients).norm() / plain_gradients.norm())
    assert error <= GRADIENT_TOLERANCE, f"the gradients of GlyphCRM's fast path are off by {error:.1e}"


@contextmanager
def _nothing_dropped(model: GlyphCRMForPreTraining) -> Iterator[None]:
    """No dropout but attention's, whose probability is so small that nothing is dropped; then `model` trains again."""
    attentions = [block.attention for block in model.glyphcrm.blocks]
    before = [attention.p for attention in attentions]
    model.eval()
    try:
        for attention in attentions:
            attention.train().p = NOTHING
        yield
    finally:
        for attention, p in zip(attentions, before, strict=True):
            attention.p = p
        model.train()


def _results(model: GlyphCRMForPreTraining, batch: Batch) -> tuple[float, Tensor]:
    """Return the loss, and the gradients of HanGlyph and of the first block, flat."""
    with torch.enable_grad():  # else vectors would come from the glyph cache
        loss = model(**batch).loss
        wanted = [*model.glyphcrm.hanglyph.parameters(), *model.glyphcrm.blocks[0].parameters()]
        gradients = torch.autograd.grad(loss, wanted)
    return float(loss.detach()), torch.cat([gradient.flatten() for gradient in gradients])


class PlainBert(PretrainingObjective):
    """transformers' own loss, of logits at every position."""

    def loss(self, model: PreTrainedModel, batch: Batch, inputs: Batch, totals: Tensor) -> Tensor:
        """As `PretrainingObjective.loss`; the two means are one tensor, so that all micro-batches weigh alike."""
        outputs: Any = model(**bert_arguments(inputs))
        return outputs.loss * (self.counts(batch)[1] * totals[1].reciprocal())


def training_step(
    model: PreTrainedModel, objective: PretrainingObjective, machine: Machine, graphs: Graphs | None = None
) -> Step:
    """Return pre-training's own step; the rates are the paper's and stay."""
    return Step(model, objective, make_optimizer(model, OptimizerSettings(LEARNING_RATE)), machine, graphs)


def step_on_cpu(model: PreTrainedModel) -> Step:
    """Return the step of one of the two models, for micro-batches of `padded_batch`."""
    objective, nothing = PlainBert if isinstance(model, BertForPreTraining) else PretrainingObjective, cast(Any, ())
    return training_step(model, objective(nothing, nothing, 1, CPU, 1), CPU)


@torch.inference_mode()
def read_texts(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Compute the last hidden states of every batch."""
    for batch in batches:
        _ = model(**batch).last_hidden_state


class GlyphStep:
    """HanGlyph forward and backward over the first ordinary characters of an atlas, the most frequent of the text."""

    def __init__(self, model: GlyphCRMModel) -> None:
        self._hanglyph, self._bitmaps = model.hanglyph, model.glyph_table.bitmaps

    def fast(self, characters: int) -> None:
        """As a model runs it."""
        self._backward(self._hanglyph(self._rows(characters), self._bitmaps))

    def reference(self, order: torch.memory_format, characters: int) -> None:
        """In PyTorch's convolutions, which oneDNN computes, in one memory order."""
        self._backward(self.vectors(order, self._rows(characters)))

    def faster_reference(self, characters: int) -> tuple[str, Callable[[int], None]]:
        """Return name and function of the faster memory order, tried on PROBE characters."""
        tried = {name: partial(self.reference, order) for name, order in ORDERS.items()}
        few = min(PROBE, characters)
        seconds = seconds_by_turns({name: lambda _, step=step: step(few) for name, step in tried.items()}, 2)
        name = min(seconds, key=lambda name: seconds[name][-1])  # the first time warms up
        return name, tried[name]

    def vectors(self, order: torch.memory_format, rows: Tensor) -> tuple[Tensor, ...]:
        """Return HanGlyph's three vectors of each atlas row, in PyTorch's own operations."""
        net = self._hanglyph
        pieces = [rows] if rows.is_cuda else rows.split(CPU_PIECE)  # as HanGlyph takes them
        block1, block2 = in_pieces(self._features(order), pieces)
        return torch.tanh(net.vector(block2)), torch.tanh(net.skip1(block1)), torch.tanh(net.skip2(block2))

    def _features(self, order: torch.memory_format) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        net = self._hanglyph

        def conv(x: Tensor, layer: nn.Module) -> Tensor:
            return F.relu(layer(x))

        def block(x: Tensor, shortcut: Tensor, layers: nn.ModuleList) -> Tensor:
            y = conv(conv(x, layers[0]), layers[1])
            return F.max_pool2d(F.relu(layers[2](y) + shortcut), 2)

        def features(rows: Tensor) -> tuple[Tensor, Tensor]:
            drawn = glyph_stem(rows, self._bitmaps, net.stem.weight, net.stem.bias, net.positions, backend="reference")
            # The stem's memory order is that of all convolutions after it.
            block1 = block(*(part.contiguous(memory_format=order) for part in drawn), net.block1)
            expanded = conv(block1, net.expand)
            return block1.flatten(1), block(expanded, F.max_pool2d(expanded, 2), net.block2).flatten(1)

        return features

    def _rows(self, characters: int) -> Tensor:
        return torch.arange(FIRST_ORDINARY_ID, FIRST_ORDINARY_ID + characters, device=self._bitmaps.device)

    def _backward(self, vectors: Sequence[Tensor]) -> None:
        torch.autograd.backward(vectors, [torch.ones_like(part) for part in vectors])
        self._hanglyph.zero_grad(set_to_none=True)

"""AdamW with HanGlyph treated apart from the rest of a model: its rates, its schedule, its clipping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glyphcrm.modeling.hanglyph import HanGlyph
from glyphcrm.modeling.model import GlyphCRMModel
from glyphcrm.training.character_scaling import add_to as add_character_scaling
from glyphcrm.training.whitened_projections import WhitenedProjections

MAX_NORM = 1.0  # of a part's gradients
BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class OptimizerSettings:
    """How a model's weights are moved.

    Attributes:
        learning_rate: the peak, reached after the warm-up; then the rate falls linearly to 0.
        warmup_steps: steps of linear warm-up.
        weight_decay: not on biases, norms, and projections with a rate of their own.
        glyph_learning_rate: that of HanGlyph's weights; None: that of the rest.
        projection_learning_rate: that of HanGlyph's projections in whitened coordinates, see `WhitenedProjections`;
            None: they are trained as the rest of HanGlyph.
        hold_steps: so many first steps hold back what makes vectors of characters: HanGlyph, or token embeddings.
        hold_share: it moves at this share of its rates then. Afterwards the share rises to 1, in `warmup_steps`.
        still_steps: in so many first steps HanGlyph's convolutions stand still; afterwards their rates rise likewise.
        character_scaling: the power of `CharacterScaling`; 0: none.
        tied_decoder: whether there is a `TiedDecoder`.
    """

    learning_rate: float
    warmup_steps: int = 0
    weight_decay: float = 0.01
    glyph_learning_rate: float | None = None
    projection_learning_rate: float | None = None
    hold_steps: int = 0
    hold_share: float = 0.0
    still_steps: int = 0
    character_scaling: float = 0.0
    tied_decoder: bool = False


def hanglyph_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a model's HanGlyph, in order; none of a BERT's."""
    return [p for module in model.modules() if isinstance(module, HanGlyph) for p in module.parameters()]


def vector_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that make vectors of characters: those in HanGlyph's place, or token embeddings."""
    base = model.base_model
    assert isinstance(base, PreTrainedModel)
    return list((base.hanglyph if isinstance(base, GlyphCRMModel) else base.get_input_embeddings()).parameters())


def parts_of(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of HanGlyph, if there is one, and all others."""
    of_hanglyph = hanglyph_parameters(model)
    apart = set(of_hanglyph)
    return [part for part in (of_hanglyph, [p for p in model.parameters() if p not in apart]) if part]


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """Return AdamW over a model's parameters, which are on their device; `set_rates` gives it the rates of a step.

    Vectors (biases, weights of norms) have no weight decay.
    """
    of_hanglyph, vectors = set(hanglyph_parameters(model)), set(vector_parameters(model))
    whitened = None
    if of_hanglyph and settings.projection_learning_rate is not None:
        base = model.base_model
        assert isinstance(base, GlyphCRMModel)
        whitened = WhitenedProjections(base.hanglyph, base.frequent_rows(), base.glyph_table.bitmaps)
    moved_later = model.modules() if settings.still_steps else ()
    still = {p for module in moved_later if isinstance(module, HanGlyph) for p in module.convolutions()}
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {
        (*kind, decays): [] for kind in ((False, False), (True, False), (True, True)) for decays in (True, False)
    }
    for parameter in model.parameters():
        if whitened is None or parameter not in whitened.weights:
            groups[parameter in vectors, parameter in still, parameter.dim() > 1].append(parameter)
    rate = settings.learning_rate
    vector_rate = rate if settings.glyph_learning_rate is None or not of_hanglyph else settings.glyph_learning_rate
    optimizer = torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": vector_rate if is_vector else rate,
                "weight_decay": settings.weight_decay if decays else 0.0,
                "is_vector": is_vector,
                **({"is_still": True} if is_still else {}),
            }
            for (is_vector, is_still, decays), parameters in groups.items()
            if parameters
        ]
        + (whitened.groups(lr=settings.projection_learning_rate, is_vector=True) if whitened else []),
        betas=BETAS,
        eps=EPSILON,
        fused=True,
    )
    if whitened:
        whitened.attach(optimizer)
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    if of_hanglyph and settings.character_scaling:
        bitmaps = cast(GlyphCRMModel, model.base_model).glyph_table.bitmaps
        add_character_scaling(optimizer, len(bitmaps), settings.character_scaling, bitmaps.device)
    return optimizer


def share_of_peak(step: int, warmup_steps: int, steps: int) -> float:
    """Return the factor of all learning rates in a step, counted from 0, of a schedule of `steps`.

    It rises linearly from 0 in the warm-up, and falls linearly to 0 afterwards.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (steps - step) / max(1, steps - warmup_steps))


def share_after_hold(step: int, held: int, share: float, warmup_steps: int) -> float:
    """Return the factor, besides `share_of_peak`, of rates that are held back to a `share` for the first steps."""
    if step < held:
        return share
    risen = min(1.0, (step - held + 1) / max(1, warmup_steps)) if held else 1.0
    return share + (1 - share) * risen


def set_rates(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, step: int, steps: int) -> None:
    """Set every group's learning rate to that of a step, counted from 0, of a schedule of `steps`."""
    share = share_of_peak(step, settings.warmup_steps, steps)
    of_vectors = share_after_hold(step, settings.hold_steps, settings.hold_share, settings.warmup_steps)
    of_still = share_after_hold(step, settings.still_steps, 0.0, settings.warmup_steps)
    for group in optimizer.param_groups:
        held = (of_vectors if group["is_vector"] else 1.0) * (of_still if "is_still" in group else 1.0)
        group["lr"] = group["peak"] * share * held


def clip_by_part(parts: Sequence[Sequence[nn.Parameter]]) -> Tensor:
    """Clip each part's gradients to norm `MAX_NORM`; return the norm, (), of all of them before.

    HanGlyph's gradients grow to many times the encoder's. Clipped as one, they would scale the encoder's down from step
    to step, and Adam, which remembers a thousand steps, would hardly move it any more.
    """
    norms = [nn.utils.clip_grad_norm_(part, MAX_NORM) for part in parts]
    return torch.linalg.vector_norm(torch.stack(norms))

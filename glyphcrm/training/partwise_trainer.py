"""transformers' `Trainer`, with HanGlyph treated apart from the rest of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from glyphcrm.modeling.hanglyph import HanGlyph
from glyphcrm.modeling.model import GlyphCRMModel
from glyphcrm.training.whitened_projections import WhitenedProjections


def hanglyph_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters of a model's HanGlyph, in order; none of a BERT's."""
    return [p for module in model.modules() if isinstance(module, HanGlyph) for p in module.parameters()]


class PartwiseTrainer(Trainer):
    """A `Trainer` for models with a HanGlyph; others it trains as `Trainer` does.

    * HanGlyph's gradients are clipped apart from all others.
    * HanGlyph has a learning rate of its own.
    * So have its projections, for steps in whitened coordinates; without it they are trained as the rest of HanGlyph.

    Args:
        glyph_learning_rate: default: that of the rest.
        projection_learning_rate: see `WhitenedProjections`.
    """

    def __init__(
        self,
        *args: Any,
        glyph_learning_rate: float | None = None,
        projection_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.glyph_learning_rate = self.args.learning_rate if glyph_learning_rate is None else glyph_learning_rate
        self.projection_learning_rate = projection_learning_rate

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimiser: each part's learning rate, no weight decay on biases, norms, and whitened projections."""
        trained = model or self.model
        assert trained is not None
        of_hanglyph = set(hanglyph_parameters(trained))
        whitened = None
        if of_hanglyph and self.projection_learning_rate is not None:
            base = trained.base_model
            assert isinstance(base, GlyphCRMModel)
            whitened = WhitenedProjections(base.hanglyph, base.frequent_rows(), base.glyph_table.bitmaps)
        decayed = set(self.get_decay_parameter_names(trained))
        # The encoder's groups come first: it is their learning rate that the logs show.
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {
            (is_glyph, is_decayed): [] for is_glyph in (False, True) for is_decayed in (True, False)
        }
        for name, parameter in trained.named_parameters():
            if whitened is None or parameter not in whitened.weights:
                groups[parameter in of_hanglyph, name in decayed].append(parameter)
        optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = optimizer_class(
            [
                {
                    "params": parameters,
                    "lr": self.glyph_learning_rate if is_glyph else self.args.learning_rate,
                    "weight_decay": self.args.weight_decay if is_decayed else 0.0,
                }
                for (is_glyph, is_decayed), parameters in groups.items()
                if parameters
            ]
            + (whitened.groups(lr=self.projection_learning_rate) if whitened else []),
            **settings,
        )
        if whitened:
            whitened.attach(self.optimizer)
        return self.optimizer

    def _clip_grad_norm(self, model: torch.nn.Module) -> Tensor:
        # HanGlyph's gradients grow to many times the encoder's. Clipped as one, they would scale the encoder's down
        # from step to step, and Adam, which remembers a thousand steps, would hardly move it any more.
        of_hanglyph = hanglyph_parameters(model)
        apart = set(of_hanglyph)
        others = [parameter for parameter in model.parameters() if parameter not in apart]
        norms = [
            self.accelerator.clip_grad_norm_(part, self.args.max_grad_norm) for part in (of_hanglyph, others) if part
        ]
        return torch.linalg.vector_norm(torch.stack(norms))

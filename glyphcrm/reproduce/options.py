"""The settings of a reproduction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

STAGES = ("study", "finetuning", "held_out", "robustness", "unknown")  # those that may be left out


@dataclass(frozen=True)
class ReproduceOptions:
    """The settings of a reproduction; `glyphcrm reproduce --help` says what they mean."""

    preset: str
    text: tuple[str, ...]
    data: Path | None
    tasks: tuple[str, ...]
    output_dir: Path
    hours: float
    seeds: int
    max_length: int
    batch_size: int
    vocabulary_size: int
    pretraining_steps: int | None
    train_samples: int | None
    without: tuple[str, ...]
    bert_vocabulary: Path | None
    look_alikes: Path | None
    traditional: Path | None
    other_font: str | None
    paper_scores: Path | None

    def identity(self) -> dict[str, object]:
        """Return what decides the plan, and so the results."""
        # These decide what is reported, not what is trained.
        reported = ("output_dir", "data", "without", "bert_vocabulary", "look_alikes", "traditional", "other_font")
        settings = asdict(self)
        return {name: value for name, value in settings.items() if name not in (*reported, "paper_scores", "tasks")}

"""What changes inside a model while it learns: its gradients, its characters' vectors, its attention, from checkpoints.

`python -m bench.learning RUN ...` reads runs of `pretrain.py`, with `--keep-checkpoints` large enough, and prints a
table for each. Columns:

* MLM loss: of the run's own validation;
* gradients: norms of those of what makes vectors of characters, and of all others, always on the same batch;
* vectors moved: how far the vectors of the most frequent characters went since the row before, as a share of their
  spread: ``|V - V'| / |V' - mean|`` (Frobenius);
* positions: share of the position embeddings in the variance of the sum that the encoder reads;
* attention: entropy of each block's attention, mean over heads and tokens, as a share of that of an even one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.markdown import table
from glyphcrm.data.collator import padded_batch
from glyphcrm.errors import UserError, exit_code_of
from glyphcrm.modeling.model import GlyphCRMModel
from glyphcrm.pretraining.options import PretrainOptions
from glyphcrm.pretraining.run import prepare
from glyphcrm.training import run_checkpoint
from glyphcrm.training.optimizer import vector_parameters
from glyphcrm.training.progress import METRICS_FILE, read_metrics
from glyphcrm.training.run_directory import RECIPE_FILE, checkpoints, step_of

CHARACTERS = 1000  # the most frequent
HEADER = ("step", "MLM loss", "gradients: vectors", "others", "vectors moved", "positions", "attention, block by block")


@dataclass
class Row:
    """A checkpoint's numbers; see the module."""

    step: int
    gradient_of_vectors: float
    gradient_of_others: float
    vectors: Tensor  # (CHARACTERS, d)
    position_share: float
    attention: list[float]


def embedding_layers(base: PreTrainedModel) -> tuple[nn.Module, Tensor]:
    """Return the norm that reads the sum of embeddings, and the position embeddings ``(positions, d)``."""
    if isinstance(base, GlyphCRMModel):
        return base.embedding_norm, base.position_embeddings.weight
    embeddings = cast(Any, base).embeddings
    return embeddings.LayerNorm, embeddings.position_embeddings.weight


@torch.no_grad()
def vectors_of_frequent(base: PreTrainedModel) -> Tensor:
    """Return the vectors of the most frequent characters."""
    if isinstance(base, GlyphCRMModel):
        return base.hanglyph(base.frequent_rows()[:CHARACTERS], base.glyph_table.bitmaps).vector
    return base.get_input_embeddings().weight[1 : CHARACTERS + 1].clone()


def attention_entropies(attentions: tuple[Tensor, ...], mask: Tensor) -> list[float]:
    """Return the mean entropy of each block's attention ``(B, heads, L, L)``, as a share of an even one's."""
    most = mask.sum(1).log()[:, None]
    real = mask.bool()
    shares = (torch.special.entr(block).sum(-1).mean(1) / most for block in attentions)
    return [float(share[real].mean()) for share in shares]


def measure(model: PreTrainedModel, batch: dict[str, Tensor], step: int) -> Row:
    """Return a checkpoint's numbers on a batch of `padded_batch`."""
    base = cast(PreTrainedModel, model.base_model)
    norm, positions = embedding_layers(base)
    sums: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, inputs: sums.append(inputs[0].detach()))
    model.zero_grad()
    model(**batch).loss.backward()
    handle.remove()
    vectors = vector_parameters(model)
    others = [p for p in model.parameters() if not any(p is one for one in vectors)]
    mask = batch["attention_mask"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        attentions = base(**inputs, output_attentions=True).attentions
    places = torch.arange(mask.shape[1]).expand_as(mask)[mask.bool()]
    whole = sums[0].reshape(-1, sums[0].shape[-1])
    whole = whole[mask.flatten().bool()] if len(whole) == mask.numel() else whole  # else padding is left out already
    return Row(
        step,
        float(nn.utils.get_total_norm([p.grad for p in vectors if p.grad is not None])),
        float(nn.utils.get_total_norm([p.grad for p in others if p.grad is not None])),
        vectors_of_frequent(base),
        float(positions.detach()[places].var(0).sum() / whole.var(0).sum()),
        attention_entropies(attentions, mask),
    )


def rows_of(run: Path) -> Iterator[Row]:
    """Measure a run's checkpoints, in order."""
    options = PretrainOptions.parse([str(run / RECIPE_FILE)])
    options.attention = "eager"  # the only one whose weights can be seen
    corpus, model = prepare(options, first=False)
    size = min(options.recipe.batch_size, len(corpus.validation))
    batch = padded_batch([corpus.validation[i] for i in range(size)])
    model.eval()
    yield measure(model, batch, 0)
    for path in checkpoints(run):
        run_checkpoint.read_weights(path, model)
        yield measure(model, batch, step_of(path))


def main() -> int:
    """Print a table for each run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    runs = parser.parse_args().runs
    for run in runs:
        if not (run / METRICS_FILE).is_file():
            raise UserError(f"{run}: no run of pretrain.py; give its --output-dir")
    for run in runs:
        losses = {entry["step"]: entry.get("eval_mlm_loss") for entry in read_metrics(run / METRICS_FILE)}
        lines, before = [], None
        for row in rows_of(run):
            moved = ""
            if before is not None:
                spread = (before - before.mean(0)).norm()
                moved = f"{float((row.vectors - before).norm() / spread):.2f}"
            before = row.vectors
            loss = losses.get(row.step)
            lines.append(
                [
                    str(row.step),
                    "" if loss is None else f"{loss:.3f}",
                    f"{row.gradient_of_vectors:.2f}",
                    f"{row.gradient_of_others:.2f}",
                    moved,
                    f"{row.position_share:.0%}",
                    " ".join(f"{share:.0%}" for share in row.attention),
                ]
            )
        print(f"\n{run.name}\n")
        print("\n".join(table(HEADER, lines)))
    return 0


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))

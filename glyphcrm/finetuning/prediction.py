"""What a fine-tuned model says of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glyphcrm.finetuning.collator import FinetuningCollator
from glyphcrm.finetuning.encoding import Feature, Integers, encode
from glyphcrm.finetuning.metrics import Prediction
from glyphcrm.finetuning.models import reads_glyphs
from glyphcrm.finetuning.unseen import OUTSIDE, line_of_code_point, settled, speakers
from glyphcrm.tasks import Example, Kind, TaggedExample


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    kind: Kind,
    labels: Sequence[str],
    max_length: int,
    batch_size: int = 32,
) -> list[Prediction]:
    """Return the label of each text, or a tuple with the tag of every line (mostly a character) of each sentence.

    Long texts are truncated to `max_length` tokens, and long sentences cut up and put together
    again, as in `encode`. Labels and tags of the examples themselves are not looked at. `model` is a fine-tuned one, as
    `load_finetuned` returns it, and is put into evaluation mode; `labels` are those of its logits, in their order.
    """
    features = encode(tokenizer, examples, kind, labels, max_length)
    choices = choose(model, features, collator_for(model), batch_size)
    return assemble(features, choices, examples, kind, labels)


def collator_for(model: PreTrainedModel) -> FinetuningCollator:
    """Return the collator whose batches `model` reads."""
    config = model.config
    return FinetuningCollator(config.pad_token_id, config.max_position_embeddings, reads_glyphs(model))


@torch.no_grad()
def choose(
    model: PreTrainedModel,
    features: Sequence[Feature],
    collator: Callable[[Sequence[Feature]], dict[str, torch.Tensor]],
    batch_size: int,
    description: str | None = None,
) -> list[Integers]:
    """Return the index of the best label for each feature: ``()`` for a text, ``(n,)`` for a window's characters.

    Features of similar length go together; the answers come in the order of `features`. Processes that torchrun started
    share the work, and all get all answers. `description` is of a progress bar; None: no bar.
    """
    model.eval()
    by_length = sorted(range(len(features)), key=lambda i: -len(features[i]))
    batches = [by_length[i : i + batch_size] for i in range(0, len(features), batch_size)]
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = batches[rank::world]
    answers: dict[int, Integers] = {}
    for batch in tqdm(mine, description, disable=description is None, leave=False, dynamic_ncols=True):
        inputs = collator([features[i] for i in batch])
        del inputs["labels"]
        logits = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits
        best = logits.argmax(-1).cpu().numpy()
        answers |= {i: row[features[i].positions] if row.ndim else row for i, row in zip(batch, best, strict=True)}
    if world > 1:
        shares: list[Any] = [None] * world
        dist.all_gather_object(shares, answers)
        answers = {i: answer for share in shares for i, answer in share.items()}
    return [answers[i] for i in range(len(features))]


def assemble(
    features: Sequence[Feature],
    choices: Sequence[Integers],
    examples: Sequence[Example],
    kind: Kind,
    labels: Sequence[str],
) -> list[Prediction]:
    """Turn the indices that `choose` returned into labels, and windows into sentences, with a tag a line.

    A line has the tag of its first character; one that shows none, such as white space, continues what is around it.
    """
    if kind is not Kind.TAGGING:
        return [labels[int(choice)] for choice in choices]
    found: list[dict[int, str]] = [{} for _ in examples]  # tags by code point
    for feature, choice in zip(features, choices, strict=True):
        found[feature.example].update(
            (character, labels[label])
            for character, label in zip(feature.characters.tolist(), choice.tolist(), strict=True)
        )
    return [_by_line(cast(TaggedExample, e), tags) for e, tags in zip(examples, found, strict=True)]


def _by_line(example: TaggedExample, tags: dict[int, str]) -> tuple[str, ...]:
    lines = line_of_code_point(example.characters)
    first = {lines[character]: tags[character] for character in sorted(tags, reverse=True)}
    rows = [first.get(line, OUTSIDE) for line in range(len(example.characters))]
    return settled(rows, speakers(example.characters, tags.keys()))

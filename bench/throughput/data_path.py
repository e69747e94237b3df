"""The whole way from text to batches: tokenise into a store, pair, mask and collate in one worker process."""

from __future__ import annotations

from dataclasses import dataclass

from torch.utils.data import DataLoader

from bench.throughput.material import Material


@dataclass(frozen=True)
class Way:
    """What came out: batches, and characters of the training text in them."""

    batches: int
    characters: int


def text_to_batches(material: Material, number: int) -> Way:
    """Make an epoch of batches from text; `number` names the store."""
    stream = material.stream(material.write_store(f"tokens-{number}"))
    loader = DataLoader(stream, batch_size=material.sizes.batch, num_workers=1, collate_fn=material.collator)
    batches = characters = 0
    for batch in loader:
        specials = 3 * len(batch["next_sentence_label"])
        batches, characters = batches + 1, characters + int(batch["attention_mask"].sum()) - specials
    return Way(batches, characters)

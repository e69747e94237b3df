"""Fine-tuned models on rewritten test texts: look-alikes, traditional script, lost and added pictures, other fonts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glyphcrm.checkpoint import load_atlas
from glyphcrm.configuration import GlyphCRMConfig
from glyphcrm.finetuning.metrics import score
from glyphcrm.finetuning.models import load_finetuned
from glyphcrm.finetuning.prediction import predict
from glyphcrm.finetuning.results import PREDICTIONS_FILE, load_predictions
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import font_chain, open_font
from glyphcrm.glyphs.han import is_han
from glyphcrm.glyphs.look_alikes import look_alikes_from_atlas
from glyphcrm.modeling import GlyphCRMPreTrainedModel
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.substitutions import (
    read_look_alikes,
    rewritten,
    substitute,
    to_traditional,
    whole_text,
)
from glyphcrm.tasks import Example, Kind, TaggedExample, Task, TextExample
from glyphcrm.tokens import UNK_ID

SHARES = (0.0, 0.1, 0.2, 0.4)
DRAWN_LOOK_ALIKES = 5
LOST_CHARACTERS = 200  # taken out of the atlas, then put back
SEED = 0


def score_rewritten(options: ReproduceOptions, task: Task, tuned: Mapping[str, Path]) -> dict[str, Any]:
    """Score the kept models of a task on its test texts, rewritten in every way that there is data for.

    `tuned` has the directory of each architecture's model. Return experiment -> architecture -> condition -> score.
    """
    source = "SIGHAN's look-alikes" if options.look_alikes else "the five nearest pictures"
    result: dict[str, Any] = {"metric": task.metric, "look_alikes_from": source}
    result |= {"look_alikes": {}, "script": {}, "pictures": {}}
    atlas = load_atlas(tuned["glyphcrm"])
    look_alikes = _known_look_alikes(options, atlas, GlyphCRMConfig.from_pretrained(tuned["glyphcrm"]).vocab_size)
    for arch, directory in sorted(tuned.items(), reverse=True):
        model, tokenizer = load_finetuned(directory)
        examples = scored_examples(directory.parent, task.kind)
        scored = partial(_score, task, model, tokenizer)
        result["look_alikes"][arch] = {
            f"{share:g}": scored(
                [
                    rewritten(example, partial(substitute, look_alikes=look_alikes, share=share, seed=SEED, index=i))
                    for i, example in enumerate(examples)
                ]
            )
            for share in SHARES
        }
        untouched = result["look_alikes"][arch]["0"]
        changed = scored([rewritten(example, to_traditional) for example in examples])
        result["script"][arch] = {"as it is": untouched, "traditional": changed}
        if isinstance(model, GlyphCRMPreTrainedModel):
            result["pictures"] = {"as it is": untouched, **_pictures(options, atlas, model, examples, scored)}
    return result


def _score(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> float:
    """Return the task's metric of a fine-tuned model on some examples."""
    config = model.config
    names: dict[int, str] = config.id2label  # type: ignore[assignment]
    labels = [names[i] for i in range(len(names))]
    length = min(task.max_length, config.max_position_embeddings)
    guesses = predict(model, tokenizer, examples, task.kind, labels, length)
    return score(task.kind, examples, guesses)[task.metric]


def _known_look_alikes(options: ReproduceOptions, atlas: GlyphAtlas, predicted: int) -> dict[str, str]:
    """Return look-alikes that the BERT knows, too: what is unknown to it is measured elsewhere."""
    known = [char for char in atlas.tokens[:predicted] if len(char) == 1 and is_han(ord(char))]
    if options.look_alikes is None:
        return look_alikes_from_atlas(atlas, known, min(DRAWN_LOOK_ALIKES, len(known) - 1))
    published = read_look_alikes(options.look_alikes)
    kept = {char: "".join(filter(set(known).__contains__, others)) for char, others in published.items()}
    return {char: others for char, others in kept.items() if others}


def _pictures(
    options: ReproduceOptions,
    atlas: GlyphAtlas,
    model: GlyphCRMPreTrainedModel,
    examples: Sequence[Example],
    scored: Callable[[Sequence[Example]], float],
) -> dict[str, Any]:
    """Score with frequent characters missing from the atlas, with these added again, and with another font.

    Characters added in the font of the rest bring back the very pictures, and so the score; another font does not.
    """
    lost = [char for char in _frequent_han(examples, LOST_CHARACTERS) if char in atlas.rows]

    def scored_with(pictures: Mapping[str, Any]) -> float:
        bitmaps = atlas.bitmaps.copy()
        for char, picture in pictures.items():
            bitmaps[atlas.rows[char]] = picture
        model.set_atlas(GlyphAtlas(atlas.tokens, bitmaps, atlas.fonts, atlas.sources))
        return scored(examples)

    scores: dict[str, Any] = {"lost characters": len(lost)}
    scores["lost"] = scored_with(dict.fromkeys(lost, atlas.bitmaps[UNK_ID]))
    if options.other_font:
        font = open_font(options.other_font)
        drawn = GlyphAtlas.build(atlas.tokens, font_chain([font]))
        pictures = {char: drawn.bitmaps[row] for char, row in drawn.rows.items()}
        scores["lost, then added in another font"] = scored_with({char: pictures[char] for char in lost})
        scores["all in another font"] = scored_with(pictures)
        scores["other font"] = font.name
    return scores


def _frequent_han(examples: Sequence[Example], count: int) -> list[str]:
    """Return the Han characters that stand in the most examples."""
    documents: Counter[str] = Counter()
    for example in examples:
        documents.update({char for char in whole_text(example) if is_han(ord(char))})
    return sorted(documents, key=lambda char: (-documents[char], char))[:count]


def scored_examples(seed_directory: Path, kind: Kind) -> list[Example]:
    """Return the test examples that a seed was scored on, from its predictions."""
    rows = load_predictions(seed_directory / PREDICTIONS_FILE)
    if kind is Kind.TAGGING:
        return [TaggedExample(tuple(row["characters"]), tuple(row["gold"])) for row in rows]
    return [TextExample(row["text"], row["gold"], row.get("pair")) for row in rows]

"""Fine-tuned models on rewritten test texts: look-alikes, traditional script, lost and added pictures, other fonts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glyphcrm.finetuning.metrics import score
from glyphcrm.finetuning.models import load_finetuned
from glyphcrm.finetuning.prediction import predict
from glyphcrm.finetuning.results import PREDICTIONS_FILE, load_predictions
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.glyphs.fonts import font_chain, open_font
from glyphcrm.glyphs.han import is_han
from glyphcrm.modeling import GlyphCRMPreTrainedModel
from glyphcrm.reproduce.options import ReproduceOptions
from glyphcrm.reproduce.substitutions import (
    look_alikes_from_atlas,
    read_look_alikes,
    read_traditional,
    rewrite,
    rewritten,
    substitute,
    whole_text,
)
from glyphcrm.tasks import Example, Kind, TaggedExample, Task, TextExample
from glyphcrm.tokenization import GlyphCRMTokenizer

SHARES = (0.0, 0.1, 0.2, 0.4)
DRAWN_LOOK_ALIKES = 5
LOST_CHARACTERS = 200  # taken out of the atlas, then put back
SEED = 0

Rewrite = Callable[[str, int], str]
"""Text and index of the example to a text of the same length."""


def score_rewritten(options: ReproduceOptions, task: Task, tuned: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Score the kept models of a task on its test texts, rewritten in every way that there is data for.

    Args:
        task: the task.
        tuned: summary of each architecture, as in summary.json.

    Returns:
        experiment -> architecture -> condition -> score.
    """
    source = "SIGHAN's look-alikes" if options.look_alikes else "the five nearest pictures"
    result: dict[str, Any] = {"metric": task.metric, "look_alikes_from": source}
    result |= {"look_alikes": {}, "script": {}, "pictures": {}}
    look_alikes: dict[str, str] | None = None
    traditional = read_traditional(options.traditional) if options.traditional else None
    # GlyphCRM comes first: it says which characters both models know, and its atlas has the pictures.
    for arch in sorted(tuned, reverse=True):
        directory = Path(tuned[arch]["kept_model"])
        model, tokenizer = load_finetuned(directory)
        examples = scored_examples(directory.parent, task.kind)
        scorer = _Scorer(task, model, tokenizer, examples)
        if look_alikes is None:
            look_alikes = _known_look_alikes(options, model, tokenizer)
        result["look_alikes"][arch] = {
            f"{share:g}": scorer.score(_substituting(look_alikes, share)) for share in SHARES
        }
        if traditional is not None:
            table = traditional
            result["script"][arch] = {
                "as it is": result["look_alikes"][arch]["0"],
                "traditional": scorer.score(lambda text, _, table=table: rewrite(text, table)),  # type: ignore[misc]
            }
        if isinstance(model, GlyphCRMPreTrainedModel):
            result["pictures"] = _pictures(options, scorer, model, tokenizer, result["look_alikes"][arch]["0"])
    return result


class _Scorer:
    """A fine-tuned model and the test examples of its task."""

    def __init__(
        self, task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
    ) -> None:
        self.task, self.model, self.tokenizer, self.examples = task, model, tokenizer, examples
        names: dict[int, str] = model.config.id2label  # type: ignore[assignment]
        self.labels = [names[i] for i in range(len(names))]

    def score(self, rewrite_text: Rewrite | None = None) -> float:
        """Return the task's metric on the examples, each rewritten."""
        examples = self.examples
        if rewrite_text is not None:
            examples = [
                rewritten(example, lambda text, i=i: rewrite_text(text, i))  # type: ignore[misc, type-var]
                for i, example in enumerate(examples)
            ]
        length = min(self.task.max_length, self.model.config.max_position_embeddings)
        kind = self.task.kind
        guesses = predict(self.model, self.tokenizer, examples, kind, self.labels, length)
        return score(kind, self.examples, guesses, self.labels)[self.task.metric]


def _known_look_alikes(
    options: ReproduceOptions, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    """Return look-alikes that the BERT knows, too: what is unknown to it is measured elsewhere."""
    atlas = _atlas_of(model, tokenizer)
    known = [char for char in atlas.tokens[: model.config.vocab_size] if len(char) == 1 and is_han(ord(char))]
    if options.look_alikes is None:
        return look_alikes_from_atlas(atlas, known, min(DRAWN_LOOK_ALIKES, len(known) - 1))
    published = read_look_alikes(options.look_alikes)
    kept = {char: "".join(filter(set(known).__contains__, others)) for char, others in published.items()}
    return {char: others for char, others in kept.items() if others}


def _substituting(look_alikes: dict[str, str], share: float) -> Rewrite:
    return lambda text, index: substitute(text, look_alikes, share, SEED, index)


def _pictures(
    options: ReproduceOptions,
    scorer: _Scorer,
    model: GlyphCRMPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    untouched: float,
) -> dict[str, Any]:
    """Score with frequent characters missing from the atlas, with these added again, and with another font.

    Characters added in the font of the rest bring back the very pictures, and so the score; another font does not.
    """
    assert isinstance(tokenizer, GlyphCRMTokenizer)
    atlas = _atlas_of(model, tokenizer)
    lost = [char for char in _frequent_han(scorer.examples, LOST_CHARACTERS) if char in atlas.rows]

    def scored_with(pictures: Mapping[str, Any]) -> float:
        model.set_atlas(_with_rows(atlas, pictures))
        return scorer.score()

    scores: dict[str, Any] = {"as it is": untouched, "lost characters": len(lost)}
    scores["lost"] = scored_with(dict.fromkeys(lost, atlas.bitmaps[atlas.rows["[UNK]"]]))
    if options.other_font:
        font = open_font(options.other_font)
        drawn = GlyphAtlas.build(atlas.tokens, font_chain([font]))
        pictures = {char: drawn.bitmaps[row] for char, row in drawn.rows.items()}
        scores["lost, then added in another font"] = scored_with({char: pictures[char] for char in lost})
        scores["all in another font"] = scored_with(pictures)
        scores["other font"] = font.name
    model.set_atlas(atlas)
    return scores


def _with_rows(atlas: GlyphAtlas, pictures: Mapping[str, Any]) -> GlyphAtlas:
    """Return the atlas with other pictures of some characters."""
    bitmaps = atlas.bitmaps.copy()
    for char, picture in pictures.items():
        bitmaps[atlas.rows[char]] = picture
    return GlyphAtlas(atlas.tokens, bitmaps, atlas.fonts, atlas.sources)


def _atlas_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GlyphAtlas:
    assert isinstance(model, GlyphCRMPreTrainedModel) and isinstance(tokenizer, GlyphCRMTokenizer)
    table = model.glyph_model.glyph_table
    bitmaps, sources = table.bitmaps.cpu().numpy(), table.sources.cpu().numpy()
    return GlyphAtlas(tokenizer.tokens, bitmaps, tuple(model.config.glyph_fonts or ()), sources)


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

"""What a freshly trained model puts in place of a masked character."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import pipeline

from glyphcrm.data.sentence_pairs import SentencePairs
from glyphcrm.tokenization import GlyphCRMTokenizer

COUNT = 6  # sentences
GUESSES = 5  # for each
SHORTEST, LONGEST = 8, 36  # characters


def masked_sentences(pairs: SentencePairs, tokenizer: GlyphCRMTokenizer) -> Iterator[tuple[str, str]]:
    """Yield at most six held-out sentences with one character masked, and that character.

    The sentences stand at even distances over the held-out text; the masked character is the Han
    character nearest to the middle.
    """
    stride = max(1, len(pairs) // COUNT)
    for first, _ in pairs.spans[::stride][:COUNT].tolist():
        ids = pairs.store.sentence(first)
        tokens = [tokenizer.tokens[i] for i in ids][:LONGEST]
        han = [i for i, token in enumerate(tokens) if "\u4e00" <= token <= "\u9fff"]
        if len(tokens) < SHORTEST or not han:
            continue
        at = min(han, key=lambda i: abs(i - len(tokens) // 2))
        yield "".join([*tokens[:at], "[MASK]", *tokens[at + 1 :]]), tokens[at]


def print_fill_mask(model_dir: Path, pairs: SentencePairs, tokenizer: GlyphCRMTokenizer) -> None:
    """Print top-5 answers of the model in `model_dir` for a few held-out sentences.

    Args:
        model_dir: of a GlyphCRM or a BERT, whose own tokenizer may know fewer characters.
        pairs: the held-out text.
        tokenizer: that of the text's ids.
    """
    fill = pipeline("fill-mask", model=str(model_dir), device="cpu")
    own: Any = fill.tokenizer
    special = set(own.all_special_ids)  # [UNK] fills no gap
    count = min(GUESSES + len(special), fill.model.config.vocab_size)
    for sentence, answer in masked_sentences(pairs, tokenizer):
        found = [guess for guess in fill(sentence, top_k=count) if guess["token"] not in special]
        guesses = "  ".join(f"{guess['token_str']} {guess['score']:.1%}" for guess in found[:GUESSES])
        print(f"  {sentence.replace('[MASK]', '▢')}  ({answer})\n      {guesses}")

"""How much each row of the table computes, by preset."""

from __future__ import annotations

from dataclasses import dataclass

from glyphcrm.configuration import GlyphCRMConfig, preset
from glyphcrm.vocabulary import DEFAULT_VOCABULARY_SIZE


@dataclass(frozen=True)
class Sizes:
    """Amounts of a preset.

    Attributes:
        preset: size of both models.
        length: tokens a sequence of a training step, at most.
        batch: sequences of the smaller training step, and of a batch at inference.
        accumulated: how many times as many the larger training step has.
        texts: texts of a pass at inference.
        glyphs: distinct characters of the HanGlyph row.
        characters: of the training text, at most; the rest is not read.
        fill_vocabulary: predict as many characters as the paper does, although the text has fewer.
        started: preset of the checkpoint that the start-up row loads.
    """

    preset: str
    length: int = 128
    batch: int = 32
    accumulated: int = 4
    texts: int = 96
    glyphs: int = 970
    characters: int = 2_000_000
    fill_vocabulary: bool = True
    started: str = "tiny"

    def configuration(self, tokens: int) -> GlyphCRMConfig:
        """Return the configuration over an atlas of so many rows."""
        return preset(self.preset, vocab_size=min(tokens, DEFAULT_VOCABULARY_SIZE), num_glyphs=tokens)


def sizes(name: str) -> Sizes:
    """Return the amounts of a preset: the paper's table, but for "nano", which is there to test the bench."""
    if name != "nano":
        return Sizes(name)
    return Sizes(
        name,
        length=64,
        batch=4,
        accumulated=2,
        texts=8,
        glyphs=12,
        characters=40_000,
        fill_vocabulary=False,
        started="nano",
    )

"""What becomes of raw text before it is looked up: NFC, and nothing that cannot be drawn.

The rules, for the tokenizer, the vocabulary, the pre-training data and labels alike:

* Unicode NFC. CJK compatibility ideographs (U+F900 ff.) become the unified ones, as NFC demands.
* Dropped: white space and line ends (CR, LF, U+3000 too), control characters, and characters of
  zero width: format characters (U+200B, U+FEFF, U+00AD, ...) and variation selectors.
* Kept: everything else. Full-width forms stay full-width, letters keep their case.

What a vocabulary has no row for may be read as something it has: `stand_ins`.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Container

# White space, controls (Cc), format characters (Cf, Unicode 16) and variation selectors. A table, so that the ids of a
# text do not depend on the version of Unicode that Python has.
# fmt: off
DROPPED: tuple[tuple[int, int], ...] = (
    (0x0000, 0x0020), (0x007F, 0x00A0), (0x00AD, 0x00AD), (0x0600, 0x0605), (0x061C, 0x061C), (0x06DD, 0x06DD),
    (0x070F, 0x070F), (0x0890, 0x0891), (0x08E2, 0x08E2), (0x1680, 0x1680), (0x180E, 0x180E), (0x2000, 0x200F),
    (0x2028, 0x202F), (0x205F, 0x2064), (0x2066, 0x206F), (0x3000, 0x3000), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB), (0x110BD, 0x110BD), (0x110CD, 0x110CD), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0001, 0xE0001), (0xE0020, 0xE007F), (0xE0100, 0xE01EF),
)
# fmt: on

# The CJK radicals U+2E81 to U+2EF3 (U+2E9A is unassigned) as ideographs: Equivalent_Unified_Ideograph of Unicode,
# https://www.unicode.org/Public/UCD/latest/ucd/EquivalentUnifiedIdeograph.txt. NFKC knows two of them.
RADICALS_BEGIN = 0x2E81
RADICALS = (
    "厂乛乚乙亻冂𠘨刀刂卜㔾小小兀尣尢𡯂巳幺彑彐忄心扌攵\0旡日月歺母民氵氺灬爫爫丬牛犭王𤴔目示礻𥫗糹纟罓罒㓁冗𦉫羊𦍌𦍋耂"
    "肀聿肉𦥑艹艹艹虎衤覀西见角𧢲讠贝𧾷车辶辶辶邑钅長镸长门𨸏阝雨青韦页风飞食𩙿飠饣𩠐马骨鬼鱼鸟卤麦黄黾斉齐歯齿竜龙龜亀龟"
)
COMPATIBILITY_BLOCKS = (
    *(range(0xA0, 0x3400), range(0xA69C, 0xAB6A), range(0xF900, 0x10000)),
    *(range(0x10780, 0x107C0), range(0x1CC00, 0x20000)),
)
VOICED_MARKS = {"ﾞ": "\u3099", "ﾟ": "\u309a"}  # half-width ones; NFKC composes them with the kana before
# What is never dropped and never joins the character before it: nearly all text, told at once.
_PLAIN_RANGES = (
    "!-~¡-¬®-\u02ff‐-‧‰-⁞①-⩿⺀-⿿、-〩〰-\u3098゛-\u4dff一-鿿\uac00-\ud7a3！-ﾝ"
    "\U00020000-\U0002f7ff\U00030000-\U0003ffff"
)
_PLAIN = re.compile(f"[{_PLAIN_RANGES}]*")
_MAY_JOIN = re.compile(f"[^{_PLAIN_RANGES}{''.join(f'{chr(first)}-{chr(last)}' for first, last in DROPPED)}]")


def is_dropped(char: str) -> bool:
    """Whether `char` (one code point) is white space, a control, or of zero width."""
    return any(first <= ord(char) <= last for first, last in DROPPED)


class _DropTable(dict[int, int | None]):
    """A table for `str.translate` that decides about each code point once, when it is met."""

    def __missing__(self, point: int) -> int | None:
        self[point] = None if is_dropped(chr(point)) else point
        return self[point]


_DROP_TABLE = _DropTable()


def normalize(text: str) -> str:
    """Return `text` without the characters that `is_dropped` names, in NFC.

    Doing it twice is doing it once. Dropping comes first: it can bring a letter and its accent together.
    """
    return unicodedata.normalize("NFC", text.translate(_DROP_TABLE))


def is_blank(text: str) -> bool:
    """Whether `normalize(text)` is empty; reads no further than the first character that stays."""
    for char in text:  # noqa: SIM110 (the start of a generator takes longer than this)
        if _DROP_TABLE[ord(char)] is not None:
            return False
    return True


def normalize_label(label: str) -> str:
    """Return the name of a label or tag, of which two are different only if it can be seen.

    As `normalize`, but white space inside stays, as one blank.
    """
    words = ("".join(char for char in word if not is_dropped(char)) for word in label.split())
    return unicodedata.normalize("NFC", " ".join(filter(None, words)))


def clusters(text: str) -> list[tuple[int, int]]:
    """Return the ranges (start, end) of `text` that a reader sees as one character each, from left to right.

    A cluster is a character that is kept, the combining marks that follow it, and what NFC composes with it (jamo);
    dropped characters between these lie within it, all others between clusters. Each is normalised by itself: what
    stands elsewhere in the text makes no difference.
    """
    if _PLAIN.fullmatch(text):
        return [(i, i + 1) for i in range(len(text))]
    ranges: list[tuple[int, int]] = []
    cluster = ""
    for i, char in enumerate(text):
        if _DROP_TABLE[ord(char)] is None:
            continue
        if cluster and _joins(cluster, char):
            cluster += char
            ranges[-1] = (ranges[-1][0], i + 1)
        else:
            cluster = char
            ranges.append((i, i + 1))
    return ranges


def wide_clusters(text: str) -> list[tuple[int, int]]:
    """Return those of `clusters` that take in more than one code point; of most texts, that there are none, at once."""
    return [(start, end) for start, end in clusters(text) if end > start + 1] if _MAY_JOIN.search(text) else []


def _joins(cluster: str, char: str) -> bool:
    if _PLAIN.fullmatch(char):
        return False
    if char in VOICED_MARKS or unicodedata.category(char).startswith("M"):
        return True
    composed = unicodedata.normalize("NFC", cluster + char)
    return composed != unicodedata.normalize("NFC", cluster) + unicodedata.normalize("NFC", char)


def stand_ins(known: Container[str]) -> dict[str, str]:
    """Return what is read in place of each character that is not among the `known` ones, as far as all of it is known.

    That is its NFKC form: of a Kangxi radical the ideograph, of ㈱ and ㎡ their parts, of half-width kana the kana; of
    the other CJK radicals the ideograph that Unicode gives. A character that is itself known is never replaced.
    After replacing, a text is to be brought into NFC again.
    """
    found = {
        char: form
        for char, form in _compatibility_forms().items()
        if char not in known and all(part in known for part in form)
    }
    return found | {mark: form for mark, form in VOICED_MARKS.items() if mark not in known}


@functools.cache
def _compatibility_forms() -> dict[str, str]:
    forms = {
        chr(point): unicodedata.normalize("NFKC", chr(point))
        for block in COMPATIBILITY_BLOCKS
        for point in block
        if unicodedata.decomposition(chr(point)).startswith("<")
    }
    return forms | {chr(point): form for point, form in enumerate(RADICALS, RADICALS_BEGIN) if form != "\0"}

"""Tags of what no model can see: white space, characters of zero width, and accents, whose letter speaks for them.

A line of a tagged sentence is one character, or several that share a tag. A line is seen if a character begins in it
(`glyphcrm.normalization.clusters`). In gold tags and in predicted ones alike, what is not seen continues the entity
around it, and an entity begins at the first line of it that is seen: so a model can be right about every entity that
it can see at all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from glyphcrm.normalization import clusters

OUTSIDE = "O"
NOBODY = -1


def inside(tag: str) -> str:
    """Return the tag that continues what `tag` begins or continues: I-x for B-x and I-x, else O."""
    return f"I-{tag[2:]}" if tag != OUTSIDE else OUTSIDE


def line_of_code_point(lines: Sequence[str]) -> list[int]:
    """Return for each code point of the joined `lines` the index of its line."""
    return [i for i, line in enumerate(lines) for _ in line]


def speakers(lines: Sequence[str], read: Collection[int] | None = None) -> list[int]:
    """Return for each line the line that its tag follows.

    That is the line itself if it is seen, the line with the letter if it is an accent, and else `NOBODY`. `read` are
    the code points of the joined lines with which a character begins that the model has a token for; None: all.
    """
    found = [NOBODY] * len(lines)
    owners = line_of_code_point(lines)
    for start, end in clusters("".join(lines)):
        if read is None or start in read:
            letter = owners[start]
            found[letter] = letter
            for line in owners[start + 1 : end]:
                found[line] = max(found[line], letter)
    return found


def settled(tags: Sequence[str], follows: Sequence[int]) -> tuple[str, ...]:
    """Return the tags, a line each, with those of unseen lines made to follow the seen ones.

    `follows` is what `speakers` returns. A seen line keeps its tag, but if its entity began on unseen lines just before
    it, it becomes the beginning. An accent continues its letter. What nobody speaks for is inside an entity if one
    goes on behind it, else O.
    """
    result = list(tags)
    begun = ""  # the type of an entity of which only unseen lines have passed
    for i, tag in enumerate(tags):
        if follows[i] != i:
            begun = tag[2:] if tag.startswith("B-") or tag == f"I-{begun}" else ""
        else:
            if begun and tag == f"I-{begun}":
                result[i] = f"B-{begun}"
            begun = ""
    before, gap = OUTSIDE, 0  # the last tag that counts, and how many lines nobody speaks for follow it
    for i, line in enumerate(follows):
        if line == NOBODY:
            gap += 1
            continue
        if line != i:
            result[i] = inside(result[line])
        goes_on = result[i] != OUTSIDE and result[i] == inside(before)
        result[i - gap : i] = [inside(before) if goes_on else OUTSIDE] * gap
        before, gap = result[i], 0
    result[len(result) - gap :] = [OUTSIDE] * gap
    return tuple(result)

"""The rows of the table: a number that a target bounds, and what it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.throughput.interleaved import interquartile_range, ratios

KINDS = ("training", "inference", "hanglyph", "memory", "data", "start-up")  # the order of the table
RATE = "characters/s"


@dataclass(frozen=True)
class Row:
    """One comparison; these are the fields of a row in the history.

    Attributes:
        kind: one of KINDS.
        what: is measured, for people.
        peer: it is measured beside; "" if there is none.
        ratio: median over the rounds: of speeds (the peer's seconds / GlyphCRM's) where the target is a lower bound, of
            costs (GlyphCRM's / the peer's) where it is an upper one; without a peer, `unit` a core.
        spread: interquartile range of the rounds' ratios.
        target, at_least: what the ratio should be, at least or at most.
        own, peer_own: medians of GlyphCRM and of its peer, in seconds, or bytes for memory; None without a peer.
        unit: of the ratio, "" or RATE.
        rounds: how many there were.
        note: what else was seen.
    """

    kind: str
    what: str
    peer: str
    ratio: float
    spread: float
    target: float
    at_least: bool
    own: float
    peer_own: float | None
    unit: str
    rounds: int
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the target is."""
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


def row(
    kind: str,
    what: str,
    peer: str,
    own: Sequence[float],
    peer_own: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Row:
    """Make the row of a comparison from the seconds of its rounds; give one of the two targets."""
    target = at_most if at_least is None else at_least
    assert target is not None
    per_round = ratios(own, peer_own) if at_least is None else ratios(peer_own, own)
    return Row(
        kind=kind,
        what=what,
        peer=peer,
        ratio=median(per_round),
        spread=interquartile_range(per_round),
        target=target,
        at_least=at_least is not None,
        own=median(own),
        peer_own=median(peer_own),
        unit="",
        rounds=len(per_round),
        note=note,
    )

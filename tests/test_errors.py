"""`UserError` is one line, whatever it quotes."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from glyphcrm.errors import LINE_CHARACTERS, UserError


@given(st.text(st.characters(exclude_categories=()), max_size=3000))
def test_it_is_one_printable_line_of_bounded_length(text: str) -> None:
    line = str(UserError(text))
    assert line.isprintable() and len(line) <= LINE_CHARACTERS and line.splitlines() in ([line], [])
    if text.isprintable() and len(text) <= LINE_CHARACTERS:
        assert line == text


def test_what_is_left_out_is_the_middle_and_what_is_escaped_can_be_told() -> None:
    line = str(UserError("runs/x: " + "y" * 100_000 + "; choose another"))
    assert line.startswith("runs/x: y") and line.endswith("; choose another") and " … " in line
    assert str(UserError("键\n\x1b[31m\u202e\ud800")) == r"键\n\x1b[31m\u202e\ud800"
    assert str(pickle.loads(pickle.dumps(UserError("a\nb")))) == r"a\nb"  # data loading processes send it on

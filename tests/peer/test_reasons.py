"""The table of what does not apply names tests that there are."""

from __future__ import annotations

from tests.peer import test_model, test_tokenizer
from tests.peer.reasons import REASONS


def test_every_reason_is_of_a_test() -> None:
    classes = {"TestModel": test_model.TestModel, "TestTokenizer": test_tokenizer.TestTokenizer}
    assert not [(name, test) for name, test in REASONS if not callable(getattr(classes[name], test, None))]

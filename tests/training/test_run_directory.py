"""What a user is told when a run ends before its time."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from glyphcrm.errors import UserError
from glyphcrm.training.run_directory import resumable


@pytest.mark.parametrize(
    ("raised", "told"),
    [("", "interrupted; the same command continues from the last checkpoint"), ("stopped, saved", "stopped, saved")],
)
def test_an_interruption_names_what_continues(raised: str, told: str) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, resumable(Path("runs/x")):
        raise KeyboardInterrupt(raised)
    assert str(caught.value) == told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_the_users_to_mend(number: int) -> None:
    with pytest.raises(UserError, match=r"runs/x: .*; make room, then repeat the command"), resumable(Path("runs/x")):
        raise OSError(number, "full")
    with pytest.raises(PermissionError), resumable(Path("runs/x")):
        raise PermissionError(errno.EACCES, "forbidden")

"""Numbers of threads that commands are asked for."""

from __future__ import annotations

import pytest

from bitkiln import targets
from bitkiln.pipeline.errors import InputError
from bitkiln.pipeline.support.threads import counts_for

BOARD = targets.load("rasp3b")


def test_all_cores_unless_given():
    assert counts_for(BOARD, None) == (4,)


def test_each_once_in_order():
    assert counts_for(BOARD, [4, 1, 4]) == (1, 4)


def test_more_than_the_board_has_are_refused():
    with pytest.raises(InputError, match="rasp3b has 4 cores"):
        counts_for(BOARD, [1, 5])

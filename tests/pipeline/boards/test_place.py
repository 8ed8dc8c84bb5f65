"""What ``--board`` says."""

import pytest

from bitkiln.pipeline.boards.place import AtTracker, Here, OverSsh, parse
from bitkiln.pipeline.errors import InputError


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("sim", Here()),
        ("pi@kitchen", OverSsh("pi@kitchen")),
        ("fe80::1", OverSsh("fe80::1")),
        ("kitchen", OverSsh("kitchen")),
        ("10.0.0.2:9190/rasp3b", AtTracker("10.0.0.2:9190", "rasp3b")),
        ("[::1]:9190/rasp3b", AtTracker("[::1]:9190", "rasp3b")),
        ("insecure://10.0.0.2:9190/rasp3b", AtTracker("insecure://10.0.0.2:9190", "rasp3b")),
    ],
)
def test_each_kind_of_board(text, place):
    assert parse(text) == place


@pytest.mark.parametrize("text", ["", "10.0.0.2:9190", "10.0.0.2:9190/", "insecure://10.0.0.2:9190", "/rasp3b"])
def test_what_is_no_board_is_named(text):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert repr(text) in str(caught.value) and "HOST:PORT/KEY" in str(caught.value)

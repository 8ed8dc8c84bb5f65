"""Text out of files, made safe to show."""

from bitkiln.pipeline.support.text import printable


def test_what_a_terminal_would_obey_is_replaced():
    assert printable("a\x1b[31mb\x00\n\u202ec\ud800") == "a�[31mb���c�"


def test_ordinary_text_stays():
    assert printable("größe/Conv_1:0 ±") == "größe/Conv_1:0 ±"


def test_long_text_loses_its_middle():
    assert printable("abcdefghij", 5) == "ab…ij"[:5]
    assert len(printable("x" * 1000, 40)) == 40
    assert printable("abcde", 5) == "abcde"

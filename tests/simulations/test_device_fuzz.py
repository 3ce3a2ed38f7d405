"""Whatever a device's file holds, its reader gives samples or one ValueError of its own."""

import random

import pytest

from fedcurv.simulations.data.rows import read_rows

pytestmark = pytest.mark.slow

NUMBER = 5_000

PIECES = [
    *("", ",", ",,", "\n", "\r\n", "\r", '"', '""', "'", ";", "\t", " ", "\0", "\ufeff", "\x1a"),
    *("x", "y", "label", "x,label,y\n", "1,a,2\n", "3,b,5\n", "a", "b", "c", "é", "١", "𝟙"),
    *("0", "-1", "1e39", "-1e38", "1e-400", "nan", "inf", "1_0", "0x1", "9" * 400, "1e", ".", "+."),
]
BYTES = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xfe\xff", b"\x00", b"\x80"]


def spoilt_rows(source: random.Random) -> bytes:
    """Return a good file with some changes, or pieces of files in any order."""
    if source.random() < 0.3:
        return "".join(source.choices(PIECES, k=source.randint(0, 12))).encode()
    text = bytearray(b"x,label,y\n1,a,2\n3,b,5\n0.5,a,-1e3\n")
    for _ in range(source.randint(0, 3)):
        place = source.randrange(len(text) + 1)
        new = source.choice(BYTES) if source.random() < 0.2 else source.choice(PIECES).encode()
        text[place : place + source.randint(0, 2)] = new
    return bytes(text)


def test_no_csv_file_is_met_with_another_error_or_with_other_samples(tmp_path):
    source, file, accepted = random.Random(5), tmp_path / "a.csv", 0
    for _ in range(NUMBER):
        content = spoilt_rows(source)
        file.write_bytes(content)
        try:
            rows = read_rows(file, "label", ["a", "b"], 2)
        except ValueError as error:
            assert str(error).startswith(str(file)), (content, error)
            assert type(error) is ValueError, content
            continue
        if rows is None:
            continue
        accepted += 1
        inputs, labels = rows
        assert inputs.shape == (len(labels), 2) and inputs.isfinite().all(), content
        # each sample's class stands in the file, at least as often
        for number, name in enumerate(b"ab"):
            assert (labels == number).sum() <= content.count(name), content
    assert NUMBER / 20 < accepted < NUMBER / 2

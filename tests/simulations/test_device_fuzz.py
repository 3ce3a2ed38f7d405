"""Whatever a device's file holds, its reader gives samples or one ValueError of its own."""

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from fedcurv.simulations.data.pictures import FORMATS, read_pictures
from fedcurv.simulations.data.rows import read_rows
from tests.mutations import damaged

pytestmark = pytest.mark.slow

NUMBER = 20_000
PICTURES = 6_000  # each of which takes a decoder a millisecond

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


def some_pictures() -> list[bytes]:
    """Return a small picture in each format and depth that is read, and in some that are not."""
    shades = np.arange(64, dtype=np.uint8).reshape(8, 8)
    grey, wide = Image.fromarray(shades), Image.fromarray(shades.astype(np.uint16) * 999)
    ways = [(f, m, {}) for f in FORMATS for m in ("L", "RGB")] + [
        ("PNG", "P", {}),
        ("GIF", "L", {}),
    ]
    ways += [("TIFF", "L", {"compression": how}) for how in ("tiff_lzw", "tiff_adobe_deflate")]
    pictures = []
    for format, mode, more in ways:
        file = io.BytesIO()
        grey.convert(mode).save(file, format, **more)
        pictures.append(file.getvalue())
    for format in ("PNG", "TIFF"):
        file = io.BytesIO()
        wide.save(file, format)
        pictures.append(file.getvalue())
    return pictures


def test_no_picture_is_met_with_another_error_or_with_other_pixels(tmp_path):
    chance, accepted = random.Random(6), 0
    file, shape, good = tmp_path / "a" / "x.png", (1, 4, 4), some_pictures()
    file.parent.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the decoders', about what they make good
        for _ in range(PICTURES):
            file.write_bytes(damaged(chance.choice(good), chance))
            try:
                pixels, labels = read_pictures(tmp_path, ["a"], shape)
            except ValueError as error:
                assert type(error) is ValueError
                assert str(error).startswith(f"{file} cannot be read as a picture"), error
                continue
            accepted += 1
            assert pixels.shape == (1, *shape) and labels.tolist() == [0]
            assert pixels.min() >= 0 and pixels.max() <= 1
    assert PICTURES / 20 < accepted < PICTURES

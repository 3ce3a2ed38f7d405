import csv
import re
import struct
import sys
import types
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fedcurv.simulations.data.owner import DeviceData, load_device, load_test_set

PICTURES = DeviceData(shape=(1, 2, 3), classes=["cat", "dog", "eel"], mean=0.5, deviation=0.25)
ROWS = DeviceData(shape=(1, 1, 2), classes=["no", "yes"], mean=1.0, deviation=2.0, label="ill")


def write_picture(path, value, mode="L", size=(3, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def write_rows(path, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_folder_of_pictures_whose_device_has_not_all_classes(tmp_path):
    write_picture(tmp_path / "train" / "eel" / "a.png", 255)
    write_picture(tmp_path / "train" / "cat" / "b.png", 0)
    write_picture(tmp_path / "train" / "cat" / "c.png", (255, 255, 255), "RGB", (40, 50))
    write_picture(tmp_path / "test" / "dog" / "d.png", 51)
    (inputs, labels), test = load_device({"data-folder": str(tmp_path)}, PICTURES)
    assert inputs.shape == (3, 1, 2, 3)
    # the numbers of classes are the federation's, not those of this device's folders
    assert labels.tolist() == [0, 0, 2]
    expected = (torch.tensor([0.0, 1.0, 1.0]) - 0.5) / 0.25
    torch.testing.assert_close(inputs[:, 0, 0, 0], expected)
    torch.testing.assert_close(test[0], torch.full((1, 1, 2, 3), (0.2 - 0.5) / 0.25))
    assert test[1].tolist() == [1]


def test_coloured_pictures(tmp_path):
    write_picture(tmp_path / "train" / "a" / "a.png", (255, 0, 51), "RGB", (4, 4))
    data = DeviceData(shape=(3, 2, 2), classes=["a", "b"])
    (inputs, _), test = load_device({"data-folder": str(tmp_path)}, data)
    torch.testing.assert_close(inputs[0, :, 1, 1], torch.tensor([1.0, 0.0, 0.2]))
    assert test is None


def test_rows_of_a_csv_file(tmp_path):
    train = write_rows(tmp_path / "a.csv", ["x", "ill", "y"], [1, "yes", 5], [-3, "no", 1.5])
    test = write_rows(tmp_path / "b.csv", ["x", "ill", "y"], [0, "no", 0])
    source = {"data-csv": str(train), "data-test-csv": str(test)}
    (inputs, labels), (test_inputs, test_targets) = load_device(source, ROWS)
    assert inputs.tolist() == [[[[0.0, 2.0]]], [[[-2.0, 0.25]]]]
    assert labels.tolist() == [1, 0]
    assert test_inputs.tolist() == [[[[-0.5, -0.5]]]]
    assert test_targets.tolist() == [0]
    assert load_device({"data-csv": str(train)}, ROWS)[1] is None


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("my_device")
    monkeypatch.setitem(sys.modules, "my_device", made)
    return made


def test_a_function_of_the_users(module):
    inputs, labels = torch.rand(4, 1, 1, 2).double(), torch.tensor([0, 1, 1, 0])

    def load(part, config):
        assert config["sensor"] == 7
        return (inputs, labels) if part == "train" else None

    module.load = load
    source = {"data-function": "my_device:load", "sensor": 7}
    (got, got_labels), test = load_device(source, ROWS)
    assert torch.equal(got, inputs.float())  # as it is: what the function returns is not touched
    assert torch.equal(got_labels, labels)
    assert test is None


SPOILT_ROWS = {
    "no such class": ([["x", "ill", "y"], [1, "maybe", 2]], "line 2: expected one of .*no, yes"),
    "no number": ([["x", "ill", "y"], [1, "no", 2], [1, "no", "n/a"]], "line 3, y: expected a fin"),
    "NaN": ([["x", "ill", "y"], ["nan", "no", 2]], "line 2, x: expected a finite number"),
    "short": ([["x", "ill", "y"], [1, "no"]], "line 2, y: expected a finite number, got None"),
    "no label": ([["x", "y", "z"], [1, 2, 3]], "a column 'ill' and 2 others"),
    "more": ([["x", "ill", "y", "z"], [1, "no", 2, 3]], "'ill' and 2 others .*got 3 others"),
    "beyond float32": (
        [["x", "ill", "y"], [1, "no", "1e39"]],
        "line 2, y: .* '1e39', beyond float",
    ),
    "no such number": (
        [["x", "ill", "y"], [1, "no", "1_000"]],
        "line 2, y: expected a finite number",
    ),
    "a field too many": ([["x", "ill", "y"], [1, "no", 2, 3]], "line 2: expected 3 fields, got 4"),
    "a column twice": ([["x", "ill", "x"], [1, "no", 2]], "each column once, got 'x' twice"),
    "a NUL": ([["x", "ill", "y"], [1, "no", "2\0"]], "line 2.*got '2.x00'|line 2: no CSV"),
    "a huge field": ([["x", "ill", "y"], [1, "no", "2" * 200_000]], "line 2: no CSV: field larger"),
    "empty": ([], "a column 'ill' and 2 others .*got 0 others"),
    "header only": ([["x", "ill", "y"]], "expected samples for training, got none"),
}


@pytest.mark.parametrize("name", SPOILT_ROWS)
def test_a_csv_file_that_cannot_be_meant(name, tmp_path):
    rows, message = SPOILT_ROWS[name]
    path = write_rows(tmp_path / "a.csv", *rows)
    with pytest.raises(ValueError, match=message):
        load_device({"data-csv": str(path)}, ROWS)


def test_bytes_that_are_no_text_and_a_quote_without_an_end_are_told(tmp_path):
    path = tmp_path / "a.csv"
    for content, message in (
        (b"x,ill,y\n1,no,\xff\n", "expected text in UTF-8"),
        (b'x,ill,y\n1,no,2\n1,"no,2\n', "no CSV: unexpected end of data"),
        (b"\xef\xbb\xbfx,ill,y\n1,maybe,2\n", "line 2: expected one of data.classes"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_device({"data-csv": str(path)}, ROWS)
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory"):
        load_device({"data-csv": str(tmp_path)}, ROWS)


def test_standardised_numbers_must_fit_into_their_type(tmp_path):
    path = write_rows(tmp_path / "a.csv", ["x", "label", "y"], [1, "a", 5])
    data = DeviceData(shape=(1, 1, 2), classes=["a"], deviation=1e-40)
    with pytest.raises(
        ValueError, match=r"data.deviation=1e-40 bring the inputs, from 1 to 5, bey"
    ):
        load_device({"data-csv": str(path)}, data)


def test_pictures_of_16_bits_keep_their_shades(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    shades = np.array([[0, 255, 13107], [26214, 52428, 65535]], dtype=np.uint16)
    Image.fromarray(shades).save(tmp_path / "train" / "a" / "a.png")
    (inputs, _), _ = load_device(
        {"data-folder": str(tmp_path)}, DeviceData(shape=(1, 2, 3), classes=["a"])
    )
    expected = torch.tensor([[0, 255 / 65535, 0.2], [0.4, 0.8, 1.0]])
    torch.testing.assert_close(inputs[0, 0], expected)


def test_a_picture_whose_range_is_unknown_is_refused(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.new("F", (3, 2), 7.0).save(tmp_path / "train" / "cat" / "a.tif")
    with pytest.raises(
        ValueError, match=r"a\.tif cannot .* range of its pixels .*mode F.* unknown"
    ):
        load_device({"data-folder": str(tmp_path)}, PICTURES)


def png_of_size(width, height):
    """Return a PNG that says it is that large, of next to no bytes."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_of_a_picture_is_refused_by_its_size(side, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("pixels were read"))
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.png").write_bytes(png_of_size(side, side))
    with pytest.raises(ValueError, match=r"a\.png cannot be read .*pixels.*"):
        load_device({"data-folder": str(tmp_path)}, PICTURES)


def test_a_folder_with_an_unknown_class_is_refused(tmp_path):
    write_picture(tmp_path / "train" / "fox" / "a.png", 0)
    with pytest.raises(ValueError, match=r"named after data.classes \(cat, dog, eel\), got fox"):
        load_device({"data-folder": str(tmp_path)}, PICTURES)


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"cat/a\.png cannot be read as a picture"):
        load_device({"data-folder": str(tmp_path)}, PICTURES)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder 'train' in it"):
        load_device({"data-folder": str(tmp_path)}, PICTURES)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="expected samples for training, got none"):
        load_device({"data-folder": str(tmp_path)}, PICTURES)
    with pytest.raises(FileNotFoundError, match=re.escape("none.csv")):
        load_device({"data-csv": str(tmp_path / "none.csv")}, ROWS)
    with pytest.raises(ValueError, match=r"^data-function=no_such_module:load: .*imported"):
        load_device({"data-function": "no_such_module:load"}, ROWS)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "expected one of data-folder, data-csv, data-function .* got none"),
        ({"data-folder": "a", "data-csv": "b"}, "got data-folder, data-csv"),
        ({"data-function": "os.path"}, "must be module:function, got 'os.path'"),
        ({"data-function": "os:nothing"}, "os has no function 'nothing'"),
    ],
)
def test_a_source_that_cannot_be_meant(source, message):
    with pytest.raises(ValueError, match=message):
        load_device(source, ROWS)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ((torch.rand(3, 2), torch.zeros(3).long()), r"inputs \(N, 1, 1, 2\)"),
        ((torch.rand(3, 1, 1, 2), torch.zeros(2).long()), r"labels \(N,\), got"),
        ((torch.rand(2, 1, 1, 2), torch.tensor([0, 2])), "integer labels from 0 to 1"),
        ((torch.rand(2, 1, 1, 2), torch.tensor([0.0, 1.0])), "integer labels from 0 to 1"),
        ((torch.rand(3, 1, 1, 2), torch.tensor([0, 7, -1])), r"got 7 for sample 1 \(2 such\)"),
        ((torch.rand(2, 1, 1, 2), [0, 1]), "a pair of tensors, .* got tuple of Tensor, list"),
        (torch.rand(2, 1, 1, 2), "a pair of tensors, .* got Tensor"),
        ((torch.full((1, 1, 1, 2), 1e39, dtype=torch.float64), torch.tensor([0])), "finite inputs"),
        ((torch.full((1, 1, 1, 2), torch.nan), torch.tensor([0])), "finite inputs"),
        (None, "expected samples for training, got none"),
    ],
)
def test_a_function_that_returns_something_else(samples, message, module):
    module.load = lambda part, config: samples
    with pytest.raises(ValueError, match=message):
        load_device({"data-function": "my_device:load"}, ROWS)


def test_the_servers_own_test_set(tmp_path, module):
    write_picture(tmp_path / "test" / "dog" / "d.png", 51)
    assert load_test_set({"folder": str(tmp_path), "csv": None}, PICTURES)[1].tolist() == [1]
    rows = write_rows(tmp_path / "b.csv", ["x", "ill", "y"], [0, "no", 0])
    assert load_test_set({"folder": None, "csv": str(rows)}, ROWS)[1].tolist() == [0]
    module.load = lambda part, config: (torch.zeros(1, 1, 1, 2), torch.tensor([1]))
    assert load_test_set({"function": "my_device:load"}, ROWS)[1].tolist() == [1]
    assert load_test_set({"folder": None, "csv": None, "function": None}, ROWS) is None
    with pytest.raises(
        ValueError, match=r"expected one of folder, csv, function, got \['folder', 'c"
    ):
        load_test_set({"folder": "a", "csv": "b"}, ROWS)
    with pytest.raises(ValueError, match=r"data\.test\.folder=.*expected samples for testing"):
        load_test_set({"folder": str(tmp_path / "none")}, PICTURES)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": (28, 28)}, r"channels, height and width, such as \[1, 28, 28\], got \[28, 28\]"),
        ({"shape": (1, 0, 2)}, "data.shape must be"),
        ({"shape": (1, 2**13, 2**13)}, "at most 16,777,216 numbers"),
        ({"shape": (1, True, 2)}, "data.shape must be"),
        ({"shape": 5}, r"data.shape must be .* got \[5\]"),
        ({"classes": "ab"}, "data.classes must be a list of names, got 'ab'"),
        ({"classes": [["a"], "b"]}, "data.classes must be a list of names"),
        ({"deviation": "2"}, "data.deviation > 0, got 0.0 and '2'"),
        ({"label": 3}, "data.label must be a column's name, got 3"),
        ({"classes": []}, "list every class's name once"),
        ({"classes": ["a", "a"]}, "list every class's name once"),
        ({"deviation": 0.0}, "data.deviation > 0"),
        ({"mean": float("nan")}, "data.mean must be finite"),
    ],
)
def test_what_devices_must_agree_on_is_checked(changed, message):
    with pytest.raises(ValueError, match=message):
        DeviceData(**{"shape": (1, 1, 2), "classes": ["a", "b"], **changed})

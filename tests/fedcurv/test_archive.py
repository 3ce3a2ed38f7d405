import copy
import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from fedcurv.archive import read_archive, write_archive
from tests.mutations import mutations


def test_header_and_arrays_come_back(tmp_path):
    path = tmp_path / "new" / "a.npz"
    arrays = {"x": np.arange(3, dtype=np.float32), "y/z.w": np.ones((2, 0))}
    write_archive(path, {"round": 3, "names": ["ü", None]}, arrays)
    header, loaded = read_archive(path)
    assert header == {"round": 3, "names": ["ü", None]}
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert np.array_equal(loaded[name], array)
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"]


def test_a_missing_file_is_not_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path / "none.npz")


@pytest.mark.parametrize("keep", [0, 10, -30])
def test_a_truncated_file_is_refused(keep, tmp_path):
    path = tmp_path / "a.npz"
    write_archive(path, {}, {"x": np.arange(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        read_archive(path)


def test_pickles_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    path = tmp_path / "a.npz"
    np.savez(path, header=np.array("{}"), x=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        read_archive(path)


def bomb_compressed(path):
    np.savez_compressed(path, header=np.array("{}"), x=np.zeros(10**8, np.uint8))


def bomb_of_a_shape(path):
    """A plain array that says it is much larger than the file."""
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member, {"descr": "<f8", "fortran_order": False, "shape": (2**32, 2**20)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", member.getvalue())


def bomb_of_a_size(path):
    """A member that says in the archive's list that it is much larger than the file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"x" * 1000)
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(bytes(data))


def bomb_of_overlaps(path):
    """A member that is listed a thousand times."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"x" * 10**6)
        (member,) = archive.filelist
        archive.filelist += [copy.copy(member) for _ in range(999)]
        for index, one in enumerate(archive.filelist):
            one.filename = f"x{index}.npy"
        archive._didModify = True


BOMBS = {
    bomb_compressed: "is compressed",
    bomb_of_a_shape: "not those of float64",
    bomb_of_a_size: "said to be larger than its",
    bomb_of_overlaps: "said to be larger than its",
}


@pytest.mark.parametrize("make", BOMBS)
def test_sizes_are_checked_before_anything_is_allocated(make, tmp_path):
    path = tmp_path / "a.npz"
    make(path)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"a\.npz cannot be read: .*{BOMBS[make]}"):
            read_archive(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 10**6 + 3 * path.stat().st_size


@pytest.mark.parametrize("place", ["folder", "pipe"])
def test_what_is_no_file_is_refused_at_once(place, tmp_path):
    path = tmp_path / "a.npz"
    path.mkdir() if place == "folder" else os.mkfifo(path)
    with pytest.raises(ValueError, match=r"a\.npz cannot be read: it is no file"):
        read_archive(path)


@pytest.mark.parametrize(
    "array", [np.array([1 + 2j]), np.array(["a"]), np.array([np.datetime64("2020-01-01")])]
)
def test_what_is_no_number_is_refused(array, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, header=np.array("{}"), x=array)
    with pytest.raises(ValueError, match=r"a\.npz cannot be read: .*expected numbers"):
        read_archive(path)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
@pytest.mark.parametrize("dtype", ["?", "i1", ">i4", "u8", "f2", ">f8", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_all_numbers_come_back(shape, dtype, order, tmp_path):
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape), dtype, order)
    write_archive(tmp_path / "a.npz", {}, {"x": array})
    _, loaded = read_archive(tmp_path / "a.npz")
    assert loaded["x"].dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(loaded["x"], array)


@pytest.mark.slow
def test_no_input_makes_the_reader_raise_an_error_that_is_not_its_own(tmp_path):
    path = tmp_path / "a.npz"
    write_archive(path, {"a": [1, {"b": None}]}, {"x": np.arange(3.0), "y": np.ones((2, 2), "f4")})
    good, strange = path.read_bytes(), []
    for data in mutations(good, 20_000):
        path.write_bytes(data)
        try:
            read_archive(path)
        except ValueError as error:
            if "a.npz cannot be read" not in str(error):
                strange.append(error)
        except Exception as error:
            strange.append(error)
    assert not strange

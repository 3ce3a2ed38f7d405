import numpy as np
import pytest

from fedcurv.archive import read_archive, write_archive


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

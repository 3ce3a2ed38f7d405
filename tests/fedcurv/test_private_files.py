import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedcurv import private_files
from fedcurv.private_files import (
    locked,
    made_private,
    open_private,
    private_folder,
    remove_leftovers,
    replaced,
)


@pytest.fixture(autouse=True)
def everybody_may_read_what_is_not_made_private():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return path.stat().st_mode & 0o777


def test_what_is_made_is_for_its_owner_alone_and_what_was_there_stays_as_it_is(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    private_folder(shared / "a" / "b")
    with replaced(shared / "a" / "file") as file:
        file.write(b"x")
    with open_private(shared / "a" / "lines", "ab") as file:
        file.write(b"x")
    with made_private():
        (shared / "a" / "report").write_text("x")
    assert mode(shared) == 0o755
    assert [mode(shared / "a"), mode(shared / "a" / "b")] == [0o700, 0o700]
    assert {mode(shared / "a" / name) for name in ("file", "lines", "report")} == {0o600}


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path):
    path = tmp_path / "lines"
    path.write_text("one\n")
    with open_private(path, "ab") as file:
        file.write(b"two\n")
    assert mode(path) == 0o600
    assert path.read_text() == "one\ntwo\n"


# by its path: the package would take seconds to be imported
ALONE = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(private_files.__file__).parent)!r})
"""

HOLD = """
from private_files import locked, replaced
with (locked if sys.argv[1] == "locked" else replaced)(Path(sys.argv[2])) as it:
    if sys.argv[1] == "replaced":
        it.write(b"half")
        it.flush()
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Start a process that is in the middle of it; it can be killed."""
    processes = []

    def begin(what, path):
        process = subprocess.Popen(
            [sys.executable, "-c", ALONE + HOLD, what, str(path)], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in processes:
        process.kill()
        process.wait(10)
        process.stdout.close()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait(10)


def test_a_lock_keeps_others_out_and_ends_with_its_process(tmp_path, hold):
    path = tmp_path / "new" / "lock"
    process = hold("locked", path)
    with locked(path) as got:
        assert not got
    kill(process)
    for _ in range(2):
        with locked(path) as got:
            assert got
            with locked(path) as second:  # also within one process
                assert not second


def test_a_lock_is_not_handed_to_a_process_that_is_forked_off(tmp_path):
    path = tmp_path / "lock"
    read_end, write_end = os.pipe()
    with locked(path) as got:
        assert got
        child = os.fork()
        if child == 0:
            os.read(read_end, 1)
            os._exit(0)
    try:
        with locked(path) as got:
            assert got
    finally:
        os.write(write_end, b"x")
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(tmp_path, hold):
    path = tmp_path / "a.npz"
    killed = hold("replaced", path)
    kill(killed)
    living = hold("replaced", path)
    left = sorted(tmp_path.iterdir())
    assert len(left) == 1, "the second writer removed what the first had left"
    with replaced(path) as file:
        file.write(b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([*left, path])
    kill(living)
    with replaced(path) as file:
        file.write(b"whole again")
    assert list(tmp_path.iterdir()) == [path]


def test_other_peoples_unfinished_files_are_left_alone(tmp_path):
    for name in ("film.part", ".b.npz.xyz.part", "tmpabcd_12x.part"):
        (tmp_path / name).write_text("x")
    with replaced(tmp_path / "a.npz") as file:
        file.write(b"x")
    # the last is named as this project once did
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.npz.xyz.part", "a.npz", "film.part"]
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    remove_leftovers(tmp_path / "none")


def test_all_works_where_there_are_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(private_files, "fcntl", None)
    monkeypatch.setattr(private_files, "msvcrt", None)
    with locked(tmp_path / "lock") as got, locked(tmp_path / "lock") as second:
        assert got and second
    (tmp_path / ".a.abc.part").write_text("x")
    with replaced(tmp_path / "a") as file:
        file.write(b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "lock"]


def test_it_can_be_imported_without_fcntl():
    code = "sys.modules['fcntl'] = None; import private_files; assert private_files.fcntl is None"
    subprocess.run([sys.executable, "-c", ALONE + code], check=True, timeout=60)

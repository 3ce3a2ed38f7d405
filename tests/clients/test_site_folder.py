"""Whose folder a site's workers may be found in: what listens there is trusted with code."""

import json
import math
import os
import pickle
import stat
import subprocess
import sys
import threading
from multiprocessing.connection import Listener
from pathlib import Path

import pytest

from fedcurv.clients.settings import TrainingSettings
from fedcurv.clients.site import pool as site
from fedcurv.clients.site.jobs import Trained, pool_for
from fedcurv.clients.site.pool import SitePool

OTHER_USER = 12345


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def planted(tmp_path):
    """A folder with an address, and what listens there: it answers whatever is asked with code."""
    folder = tmp_path / "site"
    folder.mkdir(mode=0o700)
    key, went_off = b"k" * 32, tmp_path / "went-off"
    listener = Listener(("127.0.0.1", 0), authkey=key)

    def answer():
        while True:
            try:
                with listener.accept() as connection:
                    connection.recv_bytes()
                    connection.send_bytes(pickle.dumps(Bomb(went_off)))
            except EOFError:
                continue
            except OSError:
                return

    threading.Thread(target=answer, daemon=True).start()
    address = {"port": listener.address[1], "key": key.hex(), "pid": os.getpid()}
    (folder / "address.json").write_text(json.dumps({**address, "devices": ["cpu"]}))
    yield folder
    listener.close()
    assert not went_off.exists()


def test_an_address_of_another_user_in_an_own_folder_is_refused(planted):
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(planted / "address.json", OTHER_USER, -1)
    with pytest.raises(PermissionError, match=f"got one of user {OTHER_USER}.*remove it"):
        SitePool(planted, ["cpu"])


def test_a_folder_of_another_user_is_refused(planted):
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    os.chown(planted, OTHER_USER, -1)
    with pytest.raises(PermissionError, match="got a folder of user 12345; others could run code"):
        SitePool(planted, ["cpu"]).run(print)


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o701, 0o722])
def test_a_folder_that_others_may_enter_is_refused(planted, mode):
    planted.chmod(mode)
    with pytest.raises(PermissionError, match=rf"mode 0700, got one with the mode {mode:04o}"):
        SitePool(planted, ["cpu"]).run(print)


def test_a_link_to_a_folder_is_refused(planted):
    link = planted.with_name("link")
    link.symlink_to(planted)
    with pytest.raises(PermissionError, match="got a link"):
        SitePool(link, ["cpu"]).run(print)
    dangling = planted.with_name("dangling")
    dangling.symlink_to(planted / "nowhere")
    with pytest.raises(PermissionError, match="got a link"):
        SitePool(dangling, ["cpu"])


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match="got no folder"):
        SitePool(tmp_path / "file", ["cpu"])


def test_the_ready_made_client_refuses_a_planted_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    planted = tmp_path / f"fedcurv-{os.geteuid()}-cpu"
    planted.mkdir()
    planted.chmod(0o777)
    with pytest.raises(PermissionError, match="set TMPDIR to one of your own"):
        pool_for(TrainingSettings(trainer="lasgd", workers=1, device="cpu"))


def test_a_folder_that_is_given_away_later_is_refused(tmp_path, monkeypatch):
    """Each time that it is looked into."""
    folder = tmp_path / "site"
    monkeypatch.setattr(SitePool, "_start", lambda self: None)
    with pytest.raises(ValueError, match="expected workers on cpu"):
        SitePool(folder, ["cpu"])
    pool = SitePool.__new__(SitePool)
    pool._folder = folder
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="mode 0777"):
        pool.run(print)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}', '{"pid": "x", "key": "00"}'])
def test_an_address_that_cannot_be_read_is_none(tmp_path, text):
    tmp_path.chmod(0o700)
    (tmp_path / "address.json").write_text(text)
    pool = SitePool.__new__(SitePool)
    pool._folder = tmp_path
    assert pool._address() is None


def test_the_number_of_another_users_process_is_that_of_one_that_has_ended(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not site._is_alive(os.getppid())
    monkeypatch.undo()
    assert site._is_alive(os.getpid())
    assert not site._is_alive(0) and not site._is_alive(-1)


def test_a_living_process_that_does_not_listen_is_not_the_host(tmp_path):
    """A killed host's number may be another's."""
    tmp_path.chmod(0o700)
    with Listener(("127.0.0.1", 0)) as listener:
        port = listener.address[1]
    address = {"port": port, "key": "00", "pid": os.getpid(), "devices": ["cpu"]}
    (tmp_path / "address.json").write_text(json.dumps(address))
    pool = SitePool.__new__(SitePool)
    pool._folder = tmp_path
    assert pool._address() and not pool._answers()


def test_what_is_missing_is_said_in_one_line():
    """Where torch is built without torch.distributed, and where there is no fcntl."""
    for block, name, message in [
        ("del torch.distributed.TCPStore", "lasgd", "needs torch.distributed, which this build"),
        (
            "del torch.distributed.TCPStore",
            "clients.site.pool",
            "needs torch.distributed, which this",
        ),
        ("sys.modules['fcntl'] = None", "clients.site.pool", "need file locks"),
    ]:
        code = f"import sys, torch.distributed; {block}; import fedcurv.{name}"
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: ") and message in last, result.stderr


@pytest.mark.slow
def test_everything_in_the_folder_is_for_its_user_alone(tmp_path):
    before = os.umask(0)
    try:
        pool = SitePool(tmp_path / "site", ["cpu"])
    finally:
        os.umask(before)
    try:
        paths = [tmp_path / "site", *(tmp_path / "site").iterdir()]
        assert {p.name for p in paths} == {"site", "lock", "host.log", "address.json"}
        for path in paths:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": []}, r"devices must be a list with one .* for each worker, .*, got \[\]"),
        ({"devices": "cpu"}, "devices must be a list .*, got 'cpu'"),
        ({"devices": ["gpu:0"]}, r"devices must be a list .*, got \['gpu:0'\]"),
        ({"devices": [0, 1]}, r"devices must be a list .*, got \[0, 1\]"),
        ({"idle_s": 0}, "idle_s must be a number > 0 and <= 1e.06, got 0"),
        ({"idle_s": "900"}, "idle_s must be a number > 0 and <= 1e.06, got '900'"),
        ({"patience_s": None}, "patience_s must be a number > 0 and <= 1e.06, got None"),
        ({"patience_s": float("nan")}, "patience_s must be a number > 0 .*, got nan"),
        ({"patience_s": 1e9}, "patience_s must be a number > 0 .*, got 1000000000.0"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_folder_is_made(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        SitePool(tmp_path / "site", **{"devices": ["cpu"], **settings})
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_worker_that_had_no_sample_in_the_last_epoch_has_no_loss():
    """All were another's, which was lost before it answered."""
    assert math.isnan(Trained({}, 0.0, 0, None).loss)
    assert Trained({}, 3.0, 4, None).loss == 0.75

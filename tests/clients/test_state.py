import contextlib
import json
import logging
import os
import shutil
import socket
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from fedcurv import Curvature
from fedcurv.archive import read_archive, write_archive
from fedcurv.clients import ClientCurvature, old_states
from fedcurv.clients.old_states import DAYS_VARIABLE, GIGABYTES_VARIABLE
from fedcurv.clients.state import (
    STATE_DIRECTORY_VARIABLE,
    ContextStore,
    Contribution,
    DiskStore,
    store_for,
)
from fedcurv.strategies import FedCurv
from fedcurv.strategies.wire.records import Instruction
from tests.federation import Federation, context_of, message_with, new_model, same_bits
from tests.mutations import mutations


@pytest.fixture(autouse=True)
def each_test_is_a_process_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(old_states, "_seen", set())
    monkeypatch.setenv(STATE_DIRECTORY_VARIABLE, str(tmp_path))


def context(client_id: str = "7") -> Context:
    return Context(5, 99, {"client-id": client_id}, RecordDict(), {})


def contribution(server_round: int = 3, value: float = 1.0) -> Contribution:
    named = {"layer.weight": torch.full((4, 2), value), "odd/name": torch.arange(3.0)}
    weighted = {name: 2 * tensor for name, tensor in named.items()}
    return Contribution(server_round, "message-9", Curvature(named, weighted))


def assert_equal(one: Contribution, other: Contribution) -> None:
    assert (one.server_round, one.message_id) == (other.server_round, other.message_id)
    for a, b in (
        (one.curvature.precision, other.curvature.precision),
        (one.curvature.weighted_parameters, other.curvature.weighted_parameters),
    ):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["context", "disk"])
def test_what_is_saved_is_loaded_bit_for_bit(kind, tmp_path):
    owner = context()
    make = (
        (lambda: ContextStore(owner))
        if kind == "context"
        else lambda: DiskStore(tmp_path, owner, "f")
    )
    assert make().load(3, ["message-9"]) is None
    for value in (1.0, 2.0):
        saved = contribution(value=value)
        make().save(saved)
        assert_equal(make().load(3, ["another", "message-9"]), saved)
        assert make().load(2, ["message-9"]) is None
        assert make().load(3, ["another"]) is None
    make().save(contribution(server_round=4))
    assert make().load(3, ["message-9"]) is None, "the latest alone is kept"


@pytest.mark.parametrize("kind", ["context", "disk"])
def test_what_the_servers_checkpoint_holds_is_kept_beside_the_latest(kind, tmp_path):
    owner = context()
    store = ContextStore(owner) if kind == "context" else DiskStore(tmp_path, owner, "f")
    sent = {r: replace(contribution(r, float(r)), message_id=f"m{r}") for r in range(1, 9)}
    store.save(sent[1])
    store.save(sent[2], kept_round=1)
    store.save(sent[3], kept_round=1)
    assert_equal(store.load(1, ["m1"]), sent[1])
    assert store.load(2, ["m2"]) is None, "no checkpoint will hold it"
    assert_equal(store.load(3, ["m3"]), sent[3])
    # the round is repeated, and the other message counts
    again = replace(sent[3], message_id="again")
    store.save(again, kept_round=1)
    assert_equal(store.load(1, ["m1"]), sent[1])
    assert_equal(store.load(3, ["again"]), again)
    store.save(sent[4], kept_round=3)
    assert store.load(1, ["m1"]) is None
    assert_equal(store.load(3, ["again"]), again)
    for r in range(5, 9):
        store.save(sent[r], kept_round=0)
    files = [p.name for p in tmp_path.rglob("*.npz")]
    assert len(files) == (1 if kind == "disk" else 0)
    assert len(owner.state) == (3 if kind == "context" else 0)


def test_large_statistics_go_to_disk_and_small_ones_to_the_context(tmp_path, monkeypatch):
    monkeypatch.setenv(STATE_DIRECTORY_VARIABLE, str(tmp_path))
    instruction = Instruction(0.1, federation="f")
    assert isinstance(store_for(context(), 2**20, None, instruction), ContextStore)
    large = store_for(context(), 2**24, None, instruction)
    assert isinstance(large, DiskStore)
    assert tmp_path in large.folder.path.parents
    assert isinstance(store_for(context(), 1, tmp_path, instruction), DiskStore)


def test_a_named_clients_statistics_outlive_the_run_if_the_server_keeps_checkpoints(tmp_path):
    def kind(client, **told):
        return type(store_for(client, 1, None, Instruction(0.1, federation="f", **told)))

    assert kind(context(), resumable=True) is DiskStore
    assert kind(context(), saved_round=2) is ContextStore
    assert kind(context_of(0), resumable=True) is ContextStore, "a simulation's"


def test_a_device_without_a_folder_to_write_remembers_for_this_run_and_says_so(
    tmp_path, monkeypatch, caplog
):
    blocked = tmp_path / "file"
    blocked.write_text("x")
    monkeypatch.setenv(STATE_DIRECTORY_VARIABLE, str(blocked / "state"))
    told = Instruction(0.1, federation="f", sending="server/1", resumable=True)
    assert isinstance(store_for(context(), 1, None, told), ContextStore)
    assert "own statistics end with this run" in caplog.text
    assert STATE_DIRECTORY_VARIABLE in caplog.text
    for size, directory in ((2**24, None), (1, blocked / "state")):
        with pytest.raises(OSError, match="file"):
            store_for(context(), size, directory, told)


def test_clients_and_federations_do_not_share_files(tmp_path):
    ids = ["1", "2", "../../etc/passwd", "..", "a/b", "a%2Fb", "", "ü", "x" * 999, "x" * 998]
    paths = {DiskStore(tmp_path, context(i), f).folder.path for i in ids for f in ("f", "../f")}
    assert len(paths) == 2 * len(ids)
    assert all(path.parent.parent == tmp_path for path in paths)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(np.ones(8, np.float32).tobytes()) + 3] ^= 0x01
    path.write_bytes(bytes(data))


def damage_empty(path):
    path.write_bytes(b"")


def damage_text(path):
    path.write_text("not an archive")


def damage_pickle(path):
    np.savez(path, header=np.array([{"federation": "f"}], dtype=object), allow_pickle=True)


def damage_header(path):
    np.savez(path, header=np.array(json.dumps({"federation": "f"})))


def damage_other_version(path):
    header, arrays = read_archive(path)
    write_archive(path, {**header, "version": 1}, arrays)


def damage_missing_array(path):
    header, arrays = read_archive(path)
    write_archive(path, header, dict(list(arrays.items())[1:]))


def damage_type(path):
    header, arrays = read_archive(path)
    write_archive(path, header, {n: a.astype(np.uint64) for n, a in arrays.items()})


def other_store(path, client_id="7", federation="f", **more):
    store = DiskStore(path.parents[2], context(client_id), federation)
    store.save(contribution(**more))
    return store.folder.file(3, "message-9")


def damage_other_client(path):
    other_store(path, "8").replace(path)


def damage_other_federation(path):
    other_store(path, federation="g").replace(path)


def damage_negative(path):
    other_store(path, value=-1.0)


def damage_folder(path):
    path.unlink()
    path.mkdir()
    (path / "file").write_text("x")


def damage_pipe(path):
    path.unlink()
    os.mkfifo(path)


def damage_no_folder(path):
    shutil.rmtree(path.parent)
    path.parent.write_text("x")


def damage_no_federation(path):
    shutil.rmtree(path.parents[1])
    path.parents[1].write_text("x")


def damage_loop(path):
    shutil.rmtree(path.parent)
    path.parent.symlink_to(path.parent.name)


def damage_dangling_link(path):
    shutil.rmtree(path.parent)
    path.parent.symlink_to("nowhere")


DAMAGES = [v for name, v in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_trusted_counts_as_absent_is_told_once_and_heals(damage, tmp_path, caplog):
    store, again = (DiskStore(tmp_path, context(), "f") for _ in range(2))
    store.save(contribution())
    damage(store.folder.file(3, "message-9"))
    for _ in range(2):
        assert store.load(3, ["message-9"]) is None
    if damage is not damage_dangling_link:  # which is as good as nothing
        assert caplog.text.count("cannot be used and count as absent") == 1
    again.folder.claim("5", "server/1")
    again.save(contribution(server_round=4))
    assert_equal(again.load(4, ["message-9"]), contribution(server_round=4))
    assert caplog.text.count("cannot be used and count as absent") <= 1
    names = {p.name for p in again.folder.path.iterdir()}
    assert names == {again.folder.file(4, "message-9").name, "owner.json", "lock"}


def test_one_flipped_bit_is_absence_or_changes_nothing(tmp_path):
    store = DiskStore(tmp_path, context(), "f")
    store.save(contribution())
    path = store.folder.file(3, "message-9")
    good = path.read_bytes()
    for position in range(0, len(good), 5):
        data = bytearray(good)
        data[position] ^= 1 << position % 8
        path.write_bytes(bytes(data))
        loaded = store.load(3, ["message-9"])
        if loaded is not None:
            assert_equal(loaded, contribution())


def test_a_file_cut_off_anywhere_is_absence_that_is_told(tmp_path, caplog):
    store = DiskStore(tmp_path, context(), "f")
    store.save(contribution())
    path = store.folder.file(3, "message-9")
    good = path.read_bytes()
    lengths = range(0, len(good), 9)
    for length in lengths:
        path.write_bytes(good[:length])
        assert store.load(3, ["message-9"]) is None
    assert caplog.text.count("cannot be used and count as absent") == len(lengths)


def test_what_may_not_be_read_counts_as_absent(tmp_path, caplog, monkeypatch):
    store = DiskStore(tmp_path, context(), "f")
    store.save(contribution())

    for error in (PermissionError(13, "Permission denied"), MemoryError("too large")):

        def refuse(path, *args, error=error, **options):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", refuse)
            assert store.load(3, ["message-9"]) is None
        assert "cannot be used and count as absent" in caplog.text
        assert error.args[-1] in caplog.text
        assert store.load(3, ["message-9"]) is not None, "it is not damaged"


def test_a_folder_that_may_not_be_looked_into_counts_as_absent(tmp_path, caplog, monkeypatch):
    store = DiskStore(tmp_path, context(), "f")
    store.save(contribution())

    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert store.load(3, ["message-9"]) is None
    assert caplog.text.count("cannot be used and count as absent") == 1


@pytest.mark.parametrize(
    "foreign",
    [
        {"fedcurv.own": ConfigRecord({"server-round": "three"})},
        {"fedcurv.own": MetricRecord({"x": 1})},
        {"fedcurv.own.precision": ConfigRecord()},
        {"fedcurv.own.precision": ArrayRecord([np.ones(1)])},
        {"fedcurv.own.weighted-parameters": MetricRecord()},
        {"fedcurv.own.precision": ArrayRecord({"layer.weight": Array("<f4", (9,), "x", b"y")})},
    ],
)
def test_foreign_records_in_the_context_count_as_absent_and_heal(foreign, caplog):
    owner = context()
    store = ContextStore(owner)
    store.save(contribution())
    for name, record in foreign.items():
        owner.state[name] = record
    assert store.load(3, ["message-9"]) is None
    told = caplog.text.count("count as absent")
    assert told == 1 or "three" in str(foreign), "of another round it is, for all that is known"
    store.load(3, ["message-9"])
    assert caplog.text.count("count as absent") == told
    store.save(contribution(server_round=4), kept_round=3)
    assert_equal(store.load(4, ["message-9"]), contribution(server_round=4))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    store = DiskStore(tmp_path, context(), "f")
    old = contribution(server_round=3)
    store.save(old)

    def full_disk(*_args, **_options):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.save(contribution(server_round=4))
    monkeypatch.undo()
    assert_equal(store.load(3, ["message-9"]), old)
    assert list(store.folder.path.iterdir()) == [store.folder.file(3, "message-9")]


def test_files_are_plain_archives_without_pickles(tmp_path):
    store = DiskStore(tmp_path, context(), "f")
    store.save(contribution())
    with zipfile.ZipFile(store.folder.file(3, "message-9")) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(
            [
                "header.npy",
                *(
                    f"{kind}-{i}.npy"
                    for kind in ("precision", "weighted-parameters")
                    for i in (0, 1)
                ),
            ]
        )


def test_a_federation_that_remembers_on_disk_is_the_same_bit_for_bit(tmp_path, monkeypatch):
    def strategy():
        return FedCurv(strength=0.1, min_train_nodes=1, fraction_evaluate=0.0)

    in_context = Federation().run(strategy())
    original = ClientCurvature.__init__

    def on_disk(self, *args, **options):
        original(self, *args, **options, state_dir=tmp_path)

    monkeypatch.setattr(ClientCurvature, "__init__", on_disk)
    # the contexts forget everything at every round: only the disk remembers
    forgetful = frozenset((r, p) for r in range(1, 4) for p in range(4))
    on_disk_result = Federation(forgetful=forgetful).run(strategy())
    assert same_bits(in_context.arrays, on_disk_result.arrays)
    assert len(list(tmp_path.rglob("*.npz"))) == 4


# ---- one folder, one node


def claim(folder, node, sending):
    DiskStore(folder, context(), "f").folder.claim(node, sending)


def test_a_second_node_in_one_sending_is_refused_by_name_and_stays_so(tmp_path):
    claim(tmp_path, "10", "server/1")
    claim(tmp_path, "10", "server/1")
    for sending in ("server/1", "server/2", "server/3"):
        with pytest.raises(ValueError, match=r"client 7: node 11 and node 10 both use this client"):
            claim(tmp_path, "11", sending)
    claim(tmp_path, "10", "server/3")
    claim(tmp_path, "11", "another server/1")


def test_a_node_that_was_started_anew_takes_over_and_the_one_before_it_is_refused(tmp_path):
    claim(tmp_path, "10", "server/1")
    claim(tmp_path, "11", "server/2")
    claim(tmp_path, "12", "server/3")
    for node in ("10", "11"):
        with pytest.raises(ValueError, match=f"node {node} and node 12 both use"):
            claim(tmp_path, node, "server/4")
    claim(tmp_path, "12", "server/4")


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


def make_loop(path):
    path.symlink_to(path.name)


def make_endless(path):
    path.symlink_to("/dev/zero")


def make_link(path):
    path.with_name("mine").write_text("mine")
    path.symlink_to("mine")


def make_folder(path):
    path.mkdir()
    (path / "file").write_text("x")


OBSTACLES = [make_pipe, make_socket, make_loop, make_endless, make_link, make_folder]


@pytest.mark.parametrize("name", ["owner.json", "lock"])
@pytest.mark.parametrize("make", OBSTACLES)
def test_what_is_in_the_place_of_a_note_or_lock_is_told_once_and_heals(
    make, name, tmp_path, caplog
):
    """Nothing is waited for, and nothing is written where a link leads."""
    claim(tmp_path, "10", "server/1")
    folder = DiskStore(tmp_path, context(), "f").folder.path
    (folder / name).unlink()
    make(folder / name)
    claim(tmp_path, "10", "server/2")
    claim(tmp_path, "10", "server/3")
    assert caplog.text.count(f"{name} is no file that can be used and counts as absent") == 1
    with pytest.raises(ValueError, match="node 11 and node 10 both use"):
        claim(tmp_path, "11", "server/3")
    assert {p.name for p in folder.iterdir() if p.name != "mine"} == {"owner.json", "lock"}
    if make is make_link:
        assert (folder / "mine").read_text() == "mine"


def test_a_lock_that_may_not_be_written_is_replaced(tmp_path, monkeypatch):
    """As one of root's, of a client that ran as root once."""
    claim(tmp_path, "10", "server/1")
    lock = DiskStore(tmp_path, context(), "f").folder.path / "lock"
    lock.write_text("root's")
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, *a, **k: Path(path).name != "lock" and access(path, *a, **k)
    )
    claim(tmp_path, "10", "server/2")
    assert lock.read_text() == ""


def test_a_server_that_does_not_name_its_sendings_is_not_noted(tmp_path):
    claim(tmp_path, "10", "")
    claim(tmp_path, "11", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", "null", '{"session": 3}', "\xff", "[" * 100_000])
def test_a_damaged_note_of_who_uses_the_folder_counts_as_absent(text, tmp_path, caplog):
    claim(tmp_path, "10", "server/1")
    (tmp_path / DiskStore(tmp_path, context(), "f").folder.path / "owner.json").write_text(text)
    claim(tmp_path, "11", "server/1")
    claim(tmp_path, "11", "server/1")
    assert caplog.text.count("owner.json, of who uses the folder, cannot be used and counts") == 1


# ---- what is left behind


def test_files_and_folders_are_for_their_owner_alone(tmp_path):
    before = os.umask(0o022)
    try:
        directory = tmp_path / "new" / "state"
        claim(directory, "10", "server/1")
        DiskStore(directory, context(), "f").save(contribution())
        made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
        modes = {p: p.stat().st_mode & 0o777 for p in made}
        assert all(m == (0o700 if p.is_dir() else 0o600) for p, m in modes.items()), modes
        assert len(modes) == 7
    finally:
        os.umask(before)


def test_the_state_of_an_earlier_version_is_told_once_and_removed(tmp_path, caplog):
    store = DiskStore(tmp_path, context(), "f")
    path = store.folder.path.with_name("client-7.npz")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert store.load(3, ["message-9"]) is None
    assert store.load(3, ["message-9"]) is None
    assert caplog.text.count("of an earlier version of fedcurv and counts as absent") == 1
    assert not path.exists()


@pytest.mark.parametrize("touch", ["load", "save"])
def test_what_a_killed_node_left_half_written_is_removed(touch, tmp_path):
    store = DiskStore(tmp_path, context(), "f")
    store.save(contribution())
    for name in (".round-2-abc.npz.xyz.part", "tmpabcd1234.part"):
        (store.folder.path / name).write_bytes(b"half")
    store.load(3, ["message-9"]) if touch == "load" else store.save(contribution())
    assert not list(tmp_path.rglob("*.part"))


@pytest.fixture
def federations(tmp_path, monkeypatch):
    """Five federations of 500 bytes and more, last used 1, 10, 20, 40 and 50 days ago."""
    folders = {}
    for days in (0.9, 10, 20, 40, 50):
        folder = DiskStore(tmp_path, context(), f"f{days}").folder.path
        folder.mkdir(parents=True)
        (folder / "round-1-x.npz").write_bytes(b"x" * 500_000)
        for path in (folder / "round-1-x.npz", folder, folder.parent):
            os.utime(path, (time.time() - days * 86_400,) * 2)
        folders[days] = folder.parent
    (tmp_path / "somebody-elses").mkdir()
    os.utime(tmp_path / "somebody-elses", (0, 0))

    def left():
        DiskStore(tmp_path, context(), "current").save(contribution())
        assert (tmp_path / "somebody-elses").exists()
        return [days for days, folder in folders.items() if folder.exists()]

    return left


@pytest.mark.parametrize(
    ("days", "gigabytes", "wanted"),
    [
        (None, None, [0.9, 10, 20]),
        ("15", None, [0.9, 10]),
        ("inf", "inf", [0.9, 10, 20, 40, 50]),
        ("inf", "0.0018", [0.9, 10, 20]),
        ("0", "0", [0.9]),
    ],
)
def test_states_of_finished_federations_go_by_age_and_by_size(
    days, gigabytes, wanted, federations, monkeypatch
):
    for variable, value in ((DAYS_VARIABLE, days), (GIGABYTES_VARIABLE, gigabytes)):
        if value is not None:
            monkeypatch.setenv(variable, value)
    assert federations() == wanted


@pytest.mark.parametrize("variable", [DAYS_VARIABLE, GIGABYTES_VARIABLE])
@pytest.mark.parametrize("value", ["many", "-1", "nan"])
def test_a_bound_that_is_no_number_is_refused(variable, value, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=rf"\${variable} must be a number >= 0, got '{value}'"):
        DiskStore(tmp_path, context(), "f").save(contribution())


@pytest.mark.slow
def test_no_file_makes_a_client_raise(tmp_path):
    store = DiskStore(tmp_path, context(), "f")
    tiny = Curvature({"w": torch.ones(2)}, {"w": torch.ones(2)})
    store.save(Contribution(3, "message-9", tiny))
    path = store.folder.file(3, "message-9")
    trusted = 0
    logging.getLogger("fedcurv.clients.disk_state").disabled = True
    try:
        for data in mutations(path.read_bytes(), 20_000):
            path.write_bytes(data)
            loaded = store.load(3, ["message-9"])
            trusted += loaded is not None
            if loaded is not None:
                loaded.curvature.check()
    finally:
        logging.getLogger("fedcurv.clients.disk_state").disabled = False
    assert trusted < 20_000


def test_state_of_another_model_in_the_same_run_counts_as_absent(tmp_path, caplog):
    owner = context_of(0)
    DiskStore(tmp_path, owner, "f").save(contribution(server_round=1))
    ones = {name: torch.ones_like(p) for name, p in new_model().named_parameters()}
    message = message_with(
        Instruction(0.1, 2, 1, ["message-9", "another"], federation="f", sums=Curvature(ones, ones))
    )
    curvature = ClientCurvature(message, owner, new_model(), state_dir=tmp_path)
    assert curvature.penalty is not None
    assert torch.equal(curvature.penalty.curvature.precision["weight"], ones["weight"])
    assert "of another model and count as absent" in caplog.text


def test_terms_that_exceed_the_sums_count_as_absent(tmp_path, caplog):
    """They cannot be in them, whatever the file says."""
    owner = context_of(0)
    ones = {name: torch.ones_like(p) for name, p in new_model().named_parameters()}
    large = {name: value.clone() for name, value in ones.items()}
    large["weight"].view(-1)[-1] = 1.5
    for precision, told in ((large, 1), (ones, 0)):
        caplog.clear()
        own = Contribution(1, "message-9", Curvature(precision, ones))
        DiskStore(tmp_path, owner, "f").save(own)
        sums = Curvature({n: p.clone() for n, p in ones.items()}, dict(ones))
        instruction = Instruction(0.1, 2, 1, ["message-9", "b"], federation="f", sums=sums)
        got = ClientCurvature(
            message_with(instruction), owner, new_model(), state_dir=tmp_path
        ).penalty.curvature.precision["weight"]
        assert torch.equal(got, ones["weight"] if told else torch.zeros_like(ones["weight"]))
        assert caplog.text.count("exceed the server's sums of them and count as absent") == told

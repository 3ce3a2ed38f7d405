import json
import zipfile

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from fedcurv import Curvature
from fedcurv.clients import ClientCurvature
from fedcurv.clients.state import (
    STATE_DIRECTORY_VARIABLE,
    ContextStore,
    Contribution,
    DiskStore,
    store_for,
)
from fedcurv.strategies import FedCurv
from fedcurv.strategies.records import Instruction
from tests.federation import Federation, context_of, message_with, new_model, same_bits


def context(client_id: str = "7") -> Context:
    return Context(5, 99, {"client-id": client_id}, RecordDict(), {})


def contribution(server_round: int = 3, value: float = 1.0) -> Contribution:
    named = {"layer.weight": torch.full((4, 2), value), "odd/name": torch.rand(3)}
    information = {name: 2 * tensor for name, tensor in named.items()}
    return Contribution(server_round, "message-9", Curvature(named, information))


def assert_equal(one: Contribution, other: Contribution) -> None:
    assert (one.server_round, one.message_id) == (other.server_round, other.message_id)
    for a, b in (
        (one.curvature.precision, other.curvature.precision),
        (one.curvature.information, other.curvature.information),
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
    assert make().load() is None
    for value in (1.0, 2.0):
        saved = contribution(value=value)
        make().save(saved)
        assert_equal(make().load(), saved)


def test_large_statistics_go_to_disk_and_small_ones_to_the_context(tmp_path, monkeypatch):
    monkeypatch.setenv(STATE_DIRECTORY_VARIABLE, str(tmp_path))
    assert isinstance(store_for(context(), 2**20, None, "f"), ContextStore)
    large = store_for(context(), 2**24, None, "f")
    assert isinstance(large, DiskStore)
    assert tmp_path in large.path.parents
    assert isinstance(store_for(context(), 1, tmp_path, "f"), DiskStore)


def test_clients_and_federations_do_not_share_files(tmp_path):
    ids = ["1", "2", "../../etc/passwd", "..", "a/b", "a%2Fb", "", "ü"]
    paths = {DiskStore(tmp_path, context(i), f).path for i in ids for f in ("f", "../f")}
    assert len(paths) == 2 * len(ids)
    assert all(path.parent.parent == tmp_path for path in paths)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def damage_empty(path):
    path.write_bytes(b"")


def damage_text(path):
    path.write_text("not an archive")


def damage_pickle(path):
    np.savez(path, header=np.array([{"federation": "f"}], dtype=object), allow_pickle=True)


def damage_header(path):
    np.savez(path, header=np.array(json.dumps({"federation": "f"})))


def damage_other_client(path):
    DiskStore(path.parent.parent, context("8"), "f").save(contribution())
    DiskStore(path.parent.parent, context("8"), "f").path.replace(path)


def damage_other_federation(path):
    other = DiskStore(path.parent.parent, context(), "g")
    other.save(contribution())
    other.path.replace(path)


def damage_negative(path):
    DiskStore(path.parent.parent, context(), "f").save(contribution(value=-1.0))


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_flip,
        damage_empty,
        damage_text,
        damage_pickle,
        damage_header,
        damage_other_client,
        damage_other_federation,
        damage_negative,
    ],
)
def test_a_file_that_cannot_be_trusted_counts_as_absent_and_the_log_says_so(
    damage, tmp_path, caplog
):
    store = DiskStore(tmp_path, context(), "f")
    store.save(contribution())
    damage(store.path)
    assert store.load() is None
    assert "cannot be used and count as absent" in caplog.text


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
    assert_equal(store.load(), old)
    assert [path.name for path in store.path.parent.iterdir()] == ["client-7.npz"]


def test_files_are_plain_archives_without_pickles(tmp_path):
    store = DiskStore(tmp_path, context(), "f")
    store.save(contribution())
    with zipfile.ZipFile(store.path) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(
            [
                "header.npy",
                *(f"{kind}-{i}.npy" for kind in ("precision", "information") for i in (0, 1)),
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

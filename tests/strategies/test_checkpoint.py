import errno
import math
import os

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi, Strategy

from fedcurv.archive import read_archive, write_archive
from fedcurv.clients import ClientCurvature
from fedcurv.strategies import BestModel, EarlyStopping, FedCurv, JsonLines
from fedcurv.strategies.loop import checkpoint as checkpoint_module
from tests.federation import Federation, options, same_bits
from tests.mutations import mutations

MAKE = {
    "FedAvg": lambda: FedAvg(**options(fraction_train=0.5)),
    "FedAdam": lambda: FedAdam(**options()),
    "FedYogi": lambda: FedYogi(**options()),
    "FedAvgM": lambda: FedAvgM(server_momentum=0.9, **options()),
    "FedCurv": lambda: FedCurv(strength=0.3, **options(fraction_train=0.5)),
    "FedCurv in 4 bits": lambda: FedCurv(strength=0.3, bits=4, **options(fraction_train=0.5)),
    "FedCurv around FedAdam": lambda: FedCurv(FedAdam(**options()), strength=0.3),
}


@pytest.fixture(autouse=True)
def clients_remember_on_disk(tmp_path, monkeypatch):
    """As nodes do that outlive the server; a LocalGrid's own contexts end with it."""
    original = ClientCurvature.__init__

    def on_disk(self, *args, **more):
        original(self, *args, **more, state_dir=tmp_path / "nodes")

    monkeypatch.setattr(ClientCurvature, "__init__", on_disk)


def accuracy(server_round, arrays):
    return MetricRecord({"accuracy": float(arrays.to_torch_state_dict()["weight"].norm())})


class PowerCut(Exception):
    pass


def run(name: str, federation: Federation | None = None, **more):
    federation = federation or Federation(num_nodes=6)
    return federation.run(MAKE[name](), num_rounds=5, seed=4, evaluate_fn=accuracy, **more)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("cut", [1, 3])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name, cut, tmp_path):
    expected = run(name)
    seen = []

    def stop(record):
        seen.append(record.server_round)
        if record.server_round == cut:
            raise PowerCut

    with pytest.raises(PowerCut):
        run_with(name, stop, tmp_path / "run")
    resumed_rounds = []
    resumed = run_with(
        name, lambda r: resumed_rounds.append(r.server_round), tmp_path / "run", resume=True
    )
    assert seen == list(range(cut + 1))
    assert resumed_rounds == list(range(cut + 1, 6))
    assert same_bits(expected.arrays, resumed.arrays)
    assert expected.train_metrics_clientapp == resumed.train_metrics_clientapp
    assert expected.evaluate_metrics_serverapp == resumed.evaluate_metrics_serverapp


def run_with(name, on_round, folder, **more):
    federation = Federation(num_nodes=6)

    class Rounds(list):
        def append(self, record):
            on_round(record)

    federation.rounds = Rounds()
    return run(name, federation, checkpoint=folder, **more)


def test_resuming_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    rounds = []
    result = run_with("FedAvg", lambda r: rounds.append(r.server_round), tmp_path, resume=True)
    assert rounds == [0, 1, 2, 3, 4, 5]
    assert same_bits(result.arrays, run("FedAvg").arrays)


def test_a_finished_run_is_returned_as_it_ended(tmp_path):
    first = run_with("FedAdam", lambda r: None, tmp_path)
    rounds = []
    again = run_with("FedAdam", lambda r: rounds.append(r), tmp_path, resume=True)
    assert rounds == []
    assert same_bits(first.arrays, again.arrays)


def test_options_may_change_between_the_runs(tmp_path):
    """What the constructor was given is the caller's; what the strategy learned is the file's."""
    first = FedAdam(eta=0.1, **options())
    Federation().run(first, num_rounds=2, checkpoint=tmp_path)
    second = FedAdam(eta=0.01, **options())
    Federation().run(second, num_rounds=3, checkpoint=tmp_path, resume=True)
    assert second.eta == 0.01
    assert second.m_t is not None


def test_a_checkpoint_of_another_strategy_is_refused(tmp_path):
    run_with("FedAvg", lambda r: None, tmp_path)
    with pytest.raises(ValueError, match=r"is the checkpoint of FedAvg, expected one of FedAdam"):
        run_with("FedAdam", lambda r: None, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused_and_not_overwritten(tmp_path):
    run_with("FedAvg", lambda r: None, tmp_path)
    path = tmp_path / "checkpoint.npz"
    damaged = path.read_bytes()[:-100]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"checkpoint\.npz cannot be read"):
        run_with("FedAvg", lambda r: None, tmp_path, resume=True)
    assert path.read_bytes() == damaged


def test_an_earlier_runs_checkpoint_is_not_overwritten(tmp_path):
    run_with("FedAvg", lambda r: None, tmp_path)
    before = (tmp_path / "checkpoint.npz").read_bytes()
    with pytest.raises(FileExistsError, match="go on from it with resume=True, or choose another"):
        run_with("FedAvg", lambda r: None, tmp_path)
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


def test_a_failed_save_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    Federation().run(MAKE["FedAvg"](), num_rounds=2, checkpoint=tmp_path)
    before = (tmp_path / "checkpoint.npz").read_bytes()

    def full_disk(*_args, **_options):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_archive", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Federation().run(MAKE["FedAvg"](), num_rounds=3, checkpoint=tmp_path, resume=True)
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


def test_resume_needs_a_folder():
    with pytest.raises(ValueError, match="resume needs a checkpoint"):
        run("FedAvg", resume=True)


def test_checkpoints_may_be_some_rounds_apart_and_resuming_repeats_what_came_after(tmp_path):
    federation, seen = Federation(num_nodes=2), []
    strategy = FedAvg(**options())

    def power_cut(record):
        if record.server_round == 5:
            raise PowerCut

    more = {"checkpoint": tmp_path / "run", "checkpoint_every": 2}
    with pytest.raises(PowerCut):
        federation.run(strategy, num_rounds=7, on_round=power_cut, **more)
    resumed = federation.run(
        FedAvg(**options()),
        num_rounds=7,
        on_round=lambda r: seen.append(r.server_round),
        resume=True,
        **more,
    )
    assert seen == [5, 6, 7]
    again = federation.run(FedAvg(**options()), num_rounds=7, resume=True, **more)
    assert same_bits(again.arrays, resumed.arrays), "the last round has a checkpoint in any case"


def test_an_early_end_has_a_checkpoint(tmp_path):
    more = {
        "checkpoint": tmp_path,
        "checkpoint_every": 100,
        "evaluate_fn": lambda r, arrays: MetricRecord({"accuracy": r / 10}),
        "early_stopping": EarlyStopping(target=0.3),
    }
    federation = Federation(num_nodes=2)
    result = federation.run(FedAvg(**options()), num_rounds=9, **more)
    assert federation.rounds[-1].server_round == 3
    again = federation.run(FedAvg(**options()), num_rounds=9, resume=True, **more)
    assert same_bits(again.arrays, result.arrays)
    assert again.evaluate_metrics_serverapp == result.evaluate_metrics_serverapp


def test_checkpoints_must_be_at_least_a_round_apart(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every must be >= 1, got 0"):
        Federation().run(FedAvg(**options()), checkpoint=tmp_path, checkpoint_every=0)


# ---- a server that is killed in the middle of a round


class Killed(BaseException):
    """Ends a server as SIGKILL does: nobody catches it."""


def killed_at(server_round, replies):
    """Return what spoils one client's reply so that the server ends before it has it."""

    def spoil(content):
        raise Killed

    return {(server_round, replies): spoil}


def around(strategy):
    """Return a strategy of the user's own around another, which knows nothing of checkpoints."""

    class Around(Strategy):
        def __init__(self, inner):
            self.inner = inner

        def configure_train(self, *args):
            return self.inner.configure_train(*args)

        def aggregate_train(self, *args):
            return self.inner.aggregate_train(*args)

        def configure_evaluate(self, *args):
            return self.inner.configure_evaluate(*args)

        def aggregate_evaluate(self, *args):
            return self.inner.aggregate_evaluate(*args)

        def summary(self):
            self.inner.summary()

    return Around(strategy)


NESTED = {
    "FedCurv": lambda: FedCurv(strength=0.3, **options()),
    "FedCurv in 4 bits": lambda: FedCurv(strength=0.3, bits=4, **options()),
    "FedCurv around FedAdam": lambda: FedCurv(FedAdam(**options()), strength=0.3),
    "FedCurv inside another": lambda: around(FedCurv(strength=0.3, **options())),
    "FedCurv around FedAdam inside another": lambda: around(
        FedCurv(FedAdam(**options()), strength=0.3)
    ),
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize(("every", "cut"), [(1, 3), (2, 4), (3, 5), (3, 6), (5, 4)])
def test_a_repeated_round_subtracts_what_is_in_the_sum(name, every, cut, tmp_path):
    expected = Federation(num_nodes=3).run(NESTED[name](), num_rounds=7)
    more = {"num_rounds": 7, "checkpoint": tmp_path / "run", "checkpoint_every": every}
    # two clients have replied, and remembered what they sent
    with pytest.raises(Killed):
        Federation(num_nodes=3, spoil=killed_at(cut, 2)).run(NESTED[name](), **more)
    resumed = Federation(num_nodes=3).run(NESTED[name](), resume=True, **more)
    assert same_bits(expected.arrays, resumed.arrays)


# ---- one folder, one server


def test_a_second_server_is_refused_and_the_first_goes_on(tmp_path):
    refused = []

    def meddle(record):
        with pytest.raises(BlockingIOError, match="another server that is running uses") as error:
            Federation().run(FedAvg(**options()), checkpoint=tmp_path / "run", resume=True)
        refused.append(error)

    federation = Federation()
    federation.run(FedAvg(**options()), num_rounds=2, checkpoint=tmp_path / "run", on_round=meddle)
    assert len(refused) == 3
    again = Federation()
    again.run(FedAvg(**options()), num_rounds=3, checkpoint=tmp_path / "run", resume=True)
    assert [r.server_round for r in again.rounds] == [3]


def test_a_failed_run_gives_its_folder_free(tmp_path):
    with pytest.raises(Killed) as held:
        Federation(spoil=killed_at(1, 0)).run(FedAvg(**options()), checkpoint=tmp_path)
    Federation().run(FedAvg(**options()), checkpoint=tmp_path, resume=True)
    assert held is not None, "not even a traceback that is kept holds it"


def test_the_servers_files_are_for_their_owner_alone(tmp_path):
    before = os.umask(0o022)
    try:
        folder = tmp_path / "new" / "run"
        Federation().run(
            FedAvg(**options()),
            evaluate_fn=accuracy,
            checkpoint=folder,
            best_model=BestModel(folder / "best.pt"),
            on_round=JsonLines(folder / "rounds.jsonl"),
        )
    finally:
        os.umask(before)
    made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    modes = {p.name: p.stat().st_mode & 0o777 for p in made}
    assert all(
        m == (0o700 if p.is_dir() else 0o600) for p, m in zip(made, modes.values(), strict=True)
    )
    assert len(modes) == 6


# ---- files that are none


def changed(path, change):
    header, arrays = read_archive(path)
    change(header, arrays)
    write_archive(path, header, arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, a: h.pop("version"), "a checkpoint of version 1, expected 3; end that run with"),
        (lambda h, a: h.update(version=4), "a checkpoint of version 4, expected 3"),
        (lambda h, a: h.update({"server-round": -1}), "expected a round, got -1"),
        (lambda h, a: h.update({"server-round": True}), "expected a round, got True"),
        (lambda h, a: h.update(model=3), "expected a model"),
        (lambda h, a: h.pop("histories"), "KeyError: 'histories'"),
        (lambda h, a: h.update(state={"list": []}), "expected the state of FedAdam"),
        (lambda h, a: h["state"]["table"].update(eta="x"), "expected 'eta' of FedAdam"),
        (lambda h, a: h["state"]["table"].update(summary=1), "expected 'summary' of FedAdam"),
        (lambda h, a: a.pop("array-0"), "KeyError: 'array-0'"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_its_path(change, message, tmp_path):
    run_with("FedAdam", lambda r: None, tmp_path)
    changed(tmp_path / "checkpoint.npz", change)
    with pytest.raises(ValueError, match=rf"checkpoint\.npz .*{message}"):
        run_with("FedAdam", lambda r: None, tmp_path, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FedAdam", "FedCurv"])
def test_no_input_makes_restoring_raise_an_error_that_is_not_its_own(name, tmp_path):
    run(name, Federation(num_nodes=2), checkpoint=tmp_path)
    path, strange = tmp_path / "checkpoint.npz", []
    for data in mutations(path.read_bytes(), 10_000):
        path.write_bytes(data)
        try:
            checkpoint_module.Checkpoint(tmp_path, MAKE[name]()).restore()
        except ValueError as error:
            if "checkpoint.npz" not in str(error):
                strange.append(error)
        except Exception as error:
            strange.append(error)
    assert not strange


# ---- the best model


def run_for_best(values, path, mode="max", num_rounds=None, **more):
    """Run with these server metrics; return every round's model."""
    models = {}

    def evaluate_on_server(server_round, arrays):
        models[server_round] = arrays
        return MetricRecord({"accuracy": values[server_round]})

    Federation(num_nodes=2).run(
        FedAvg(**options()),
        num_rounds=num_rounds or len(values) - 1,
        evaluate_fn=evaluate_on_server,
        best_model=BestModel(path, mode=mode),
        **more,
    )
    return models


def assert_is(path, arrays):
    saved = torch.load(path, weights_only=True)
    expected = arrays.to_torch_state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.1, 0.5, 0.9, 0.3], "max", 2),
        ([0.1, 0.5, 0.9, 0.3], "min", 0),
        ([0.1, 0.5, 0.5, 0.5], "max", 1),
        ([0.1, math.nan, 0.2, math.nan], "max", 2),
    ],
)
def test_the_best_model_is_kept(values, mode, best, tmp_path):
    path = tmp_path / "new" / "best.pt"
    assert_is(path, run_for_best(values, path, mode)[best])


def test_a_resumed_run_knows_how_good_the_best_model_was(tmp_path):
    values, path, more = [0.1, 0.8, 0.3, 0.7], tmp_path / "best.pt", {"checkpoint": tmp_path}
    best = run_for_best(values, path, num_rounds=1, **more)[1]
    run_for_best(values, path, resume=True, **more)
    assert_is(path, best)


def test_the_best_by_a_metric_that_nobody_has_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no evaluation has a metric 'f1'"):
        Federation().run(
            FedAvg(**options()),
            evaluate_fn=lambda r, arrays: MetricRecord({"accuracy": 0.5}),
            best_model=BestModel(tmp_path / "best.pt", "f1"),
        )


def test_the_best_is_the_greatest_or_the_least(tmp_path):
    with pytest.raises(ValueError, match="mode must be max or min, got 'most'"):
        BestModel(tmp_path / "best.pt", mode="most")


# ---- early stopping


def run_with_values(values, stopping, **more):
    """Run with these server metrics, the first before round 1; return the number of rounds."""
    federation = Federation(num_nodes=2)
    federation.run(
        FedAvg(**options()),
        num_rounds=len(values) - 1,
        evaluate_fn=lambda r, arrays: MetricRecord({"accuracy": values[r], "loss": -values[r]}),
        early_stopping=stopping,
        **more,
    )
    return federation.rounds[-1].server_round


@pytest.mark.parametrize(
    ("stopping", "expected"),
    [
        (EarlyStopping(target=0.8), 3),
        (EarlyStopping(target=0.95), 7),
        (EarlyStopping("loss", mode="min", target=-0.8), 3),
        (EarlyStopping(patience=2), 5),
        (EarlyStopping(patience=3), 6),
        (EarlyStopping(patience=4), 7),
        (EarlyStopping(patience=1, min_delta=0.2), 2),
        (EarlyStopping("loss", mode="min", patience=2), 5),
        (EarlyStopping(patience=9, target=0.5), 2),
    ],
)
def test_early_stopping(stopping, expected):
    assert run_with_values([0.1, 0.4, 0.5, 0.8, 0.7, 0.6, 0.75, 0.79], stopping) == expected


def test_a_missing_metric_is_an_error():
    with pytest.raises(ValueError, match="no evaluation has a metric 'f1'; give evaluate_fn"):
        run_with_values([0.1, 0.2, 0.3], EarlyStopping("f1", patience=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected patience or target, got neither"),
        ({"patience": 0}, "patience must be >= 1, got 0"),
        ({"target": 1, "mode": "up"}, "mode must be max or min, got 'up'"),
        ({"target": 1, "min_delta": -1}, "min_delta must be >= 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**settings)


def test_a_checkpoint_around_another_strategy_is_refused(tmp_path):
    Federation().run(FedCurv(FedAdam(**options()), strength=0.1), num_rounds=1, checkpoint=tmp_path)
    other = FedCurv(FedYogi(**options()), strength=0.1)
    with pytest.raises(
        ValueError,
        match=r"of FedCurv around FedAdam, expected one of FedCurv around FedYogi",
    ):
        Federation().run(other, num_rounds=2, checkpoint=tmp_path, resume=True)


class OneMore(Federation):
    """Begins with a model that has another array."""

    def pack(self, model):
        packed = super().pack(model)
        more = {} if self.visits else {"more": packed["bias"]}
        return ArrayRecord({**packed, **more})


@pytest.mark.parametrize("make", [FedAvg, lambda **o: FedCurv(strength=0.1, **o)])
def test_a_checkpoint_of_another_model_is_refused(make, tmp_path):
    Federation().run(make(**options()), num_rounds=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"is another model's: .*'more' is missing in the file"):
        OneMore().run(make(**options()), num_rounds=2, checkpoint=tmp_path, resume=True)


def test_a_resumed_run_that_has_nothing_left_to_train_says_so(tmp_path, caplog):
    Federation().run(FedAvg(**options()), num_rounds=2, checkpoint=tmp_path)
    assert "nothing is left to train" not in caplog.text
    Federation().run(FedAvg(**options()), num_rounds=1, checkpoint=tmp_path, resume=True)
    assert "has 2 rounds already, and num_rounds is 1: nothing is left to train" in caplog.text


def test_a_disk_that_is_full_is_told_with_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*checkpoint\.npz'"):
        Federation().run(FedAvg(**options()), num_rounds=1, checkpoint=tmp_path / "run")
    assert os.listdir(tmp_path / "run") == [".checkpoint.lock"]


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".checkpoint.lock")
    with pytest.raises(OSError, match=r"\.checkpoint\.lock"):
        Federation().run(FedAvg(**options()), num_rounds=1, checkpoint=tmp_path)


@pytest.mark.parametrize("what", ["file", "link to nowhere"])
def test_a_checkpoint_that_is_no_folder_is_told_in_one_line(what, tmp_path):
    place = tmp_path / "here"
    if what == "file":
        place.write_text("notes")
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=f"{place}: expected a folder, or none yet"):
        Federation(num_nodes=2).run(FedAvg(**options()), 1, checkpoint=place)
    assert what != "file" or place.read_text() == "notes"

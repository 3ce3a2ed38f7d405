import importlib
import json
import random
import sys

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict

from fedcurv.simulations.build import (
    described_data,
    load_anew,
    load_data,
    make_model,
    make_partition,
)
from fedcurv.simulations.commands.simulate import simulate
from fedcurv.simulations.configuration import resolve
from fedcurv.simulations.data.own import data_set_of, read_arrays
from fedcurv.simulations.federation.client_app import make_task
from fedcurv.simulations.federation.task_description import describe_task
from fedcurv.simulations.own import NAMES, OWN_VARIABLE
from fedcurv.simulations.own_calls import own_options
from fedcurv.simulations.tried import check_model
from tests.federation import message_with
from tests.simulations.test_run import configuration, rows_of

MODULE = '''
import numpy as np
import random
import torch
from torch import nn

def table(samples=60, features=5, classes=3, seed=0, groups=6):
    """Rows of numbers; the class is told by the largest of the first numbers."""
    rng = np.random.default_rng(seed)
    made = {}
    for part, number in (("train", samples), ("test", 30)):
        inputs = rng.normal(size=(number, features))
        made[f"{part}_inputs"] = inputs
        made[f"{part}_targets"] = inputs[:, :classes].argmax(1)
    made["train_groups"] = np.array([f"hospital {i % groups}" for i in range(samples)])
    return made

class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return torch.full((2, 3, 4), float(index)), index % 4

def pairs():
    return {"train": Pairs(), "test": Pairs()}

def broken(**options):
    raise KeyError("column")

def nothing():
    return None

def network(shape, num_classes, width=7):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), width), nn.Tanh(),
                         nn.Linear(width, num_classes))

def too_few(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), num_classes - 1))

def by_turns(labels, num_clients, *, seed, skip=0):
    return [np.arange(skip + i, len(labels), num_clients) for i in range(num_clients)]

def twice(labels, num_clients, *, seed):
    return [np.arange(3) for _ in range(num_clients)]

def exits():
    raise SystemExit(0)

def spoils(labels, num_clients, *, seed):
    labels[:] = 0
    return by_turns(labels, num_clients, seed=seed)

def by_chance(labels, num_clients, *, seed):
    return np.array_split(np.random.default_rng().permutation(len(labels)), num_clients)

def by_global_chance(labels, num_clients, *, seed):
    return np.array_split(np.random.permutation(len(labels)), num_clients)

def drawn(samples=30):
    inputs = np.random.rand(samples, 2) + random.random() + float(torch.rand(()))
    labels = np.arange(samples) % 3
    return {"train_inputs": inputs, "train_targets": labels, "test_inputs": inputs[:9],
            "test_targets": labels[:9]}

def drawn_anew():
    return drawn() | {"test_inputs": np.random.default_rng().random((9, 2))}

class Projected(nn.Module):
    """A network behind a random projection that is no part of its state."""
    def __init__(self, shape, classes):
        super().__init__()
        self.projection = torch.randn(shape[0], 4) + random.random()
        self.output = nn.Linear(4, classes)
    def forward(self, x):
        return self.output(x @ self.projection)

class Chance(Projected):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        drawn = np.random.default_rng().random(self.projection.shape, np.float32)
        self.projection = torch.from_numpy(drawn)

class Kept(Projected):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        drawn = torch.from_numpy(np.random.default_rng().random((shape[0], 4), np.float32))
        del self.projection
        self.register_buffer("projection", drawn)

class Sized(Projected):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.more = nn.Linear(int(np.random.default_rng().integers(1, 10**6)), 1)

class Masked(nn.Module):
    """Attention's mask of -inf travels with the model."""
    def __init__(self, shape, classes):
        super().__init__()
        self.inner = nn.Linear(shape[0], shape[0])
        self.outer = nn.Linear(shape[0], classes)
        self.register_buffer("mask", torch.full((shape[0], shape[0]), -torch.inf).triu(1))
    def forward(self, x):
        scores = self.inner(x)[:, None, :] + self.mask
        return self.outer((scores.softmax(-1) @ x[:, :, None]).squeeze(-1))

class Each(nn.Module):
    def forward(self, logits, targets):
        return nn.functional.cross_entropy(logits, targets, reduction="none")

class Detached(nn.Module):
    def forward(self, logits, targets):
        return nn.functional.cross_entropy(logits, targets).detach()

class Number(nn.Module):
    def forward(self, logits, targets):
        return nn.functional.cross_entropy(logits, targets).item()

class Endless(nn.Module):
    def forward(self, logits, targets):
        return (logits.sum() - logits.sum()) / 0

class Nothing(nn.Module):
    def forward(self, logits, targets):
        pass

class Unfit(nn.Module):
    def forward(self, logits, targets):
        return (logits - targets[:, None].new_zeros(len(targets), 99)).mean()

class Brier(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
    def forward(self, logits, targets):
        wanted = nn.functional.one_hot(targets, logits.shape[1])
        return self.scale * (logits.softmax(1) - wanted).square().sum(1).mean()
'''

SMALL = ["num_clients=3", "num_rounds=2", "client.epochs=1", "strategy=[fedavg,fedcurv]"]
OWN = ["data=function", "data.function=own_things:table"]


@pytest.fixture(autouse=True)
def own_things(tmp_path, monkeypatch):
    (tmp_path / "own_things.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_things", raising=False)


def run(folder, *overrides):
    config = configuration(*SMALL, *overrides)
    summaries = simulate(config, folder, command="the command")
    return summaries, rows_of(folder / "metrics.csv")


@pytest.mark.parametrize("runner", ["local", "batched"])
def test_own_data_model_partition_and_loss_run_by_name(runner, tmp_path):
    _, rows = run(
        tmp_path / "out",
        *OWN,
        "+data.options.samples=90",
        "model=function",
        "model.function=own_things:network",
        "+model.options.width=9",
        "partition=function",
        "partition.function=own_things:by_turns",
        "client.loss={name: function, function: 'own_things:Brier', scale: 2.0}",
        f"runner={runner}",
    )
    assert {row["strategy"] for row in rows} == {"fedavg", "fedcurv"}
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    first, last = rows[0], rows[2]
    assert float(last["loss"]) < float(first["loss"])


@pytest.mark.parametrize("strategy", ["fedavg", "fedcurv", "fedadam", "fedcurv_fedadam"])
def test_a_mask_of_minus_infinity_in_an_own_model_is_no_divergence(strategy, tmp_path):
    (summary,), rows = run(
        tmp_path / "out",
        *OWN,
        "model=function",
        "model.function=own_things:Masked",
        f"strategy=[{strategy}]",
    )
    assert summary.failure == "" and [row["clients_ok"] for row in rows] == ["0", "3", "3"]
    assert float(rows[-1]["loss"]) != float(rows[0]["loss"])


def test_own_data_give_the_numbers_that_named_data_give(tmp_path):
    """The digits, once by name and once through a file of arrays."""
    from fedcurv.simulations.data.sets import load

    data = load("digits", "", False)
    np.savez(
        tmp_path / "digits.npz",
        train_inputs=data.train_inputs,
        train_targets=data.train_targets,
        test_inputs=data.test_inputs,
        test_targets=data.test_targets,
    )
    _, named = run(tmp_path / "named", "data=digits")
    file = f"data.file={tmp_path / 'digits.npz'}"
    _, own = run(tmp_path / "own", "data=arrays", file, "data.standardise=true")
    for one, other in zip(named, own, strict=True):
        assert one["accuracy"] == other["accuracy"]
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)


def test_pictures_with_their_channels_last_and_tokens_are_taken(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, 20, 24, 3)).astype(np.uint8)
    labels = np.arange(40) % 4
    arrays = {"train_inputs": pictures, "train_targets": labels}
    arrays |= {"test_inputs": pictures, "test_targets": labels}
    data = data_set_of(arrays, "here", standardise=True, channels_last=True)
    assert data.shape == (3, 20, 24)
    inputs, _ = data.test_samples()
    expected = (pictures - pictures.mean()) / pictures.std()
    np.testing.assert_allclose(inputs.permute(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-4)
    tokens = rng.integers(0, 9, (40, 12))
    arrays |= {"train_inputs": tokens, "test_inputs": tokens, "classes": list("abcdefghi")}
    np.savez(tmp_path / "text.npz", **arrays)
    for model in ("model=lstm", "model=transformer"):
        _, rows = run(
            tmp_path / model,
            "data=arrays",
            f"data.file={tmp_path / 'text.npz'}",
            model,
            "num_rounds=1",
            "model.width=8",
            "client.lr=0.05",
        )
        assert all(np.isfinite(float(row["loss"])) for row in rows)


def test_pictures_with_their_channels_first_are_not_taken_for_the_contrary():
    pictures = np.zeros((4, 3, 20, 24), np.float32)
    made = arrays(train_inputs=pictures, test_inputs=pictures[:2])
    assert data_set_of(made, "here").shape == (3, 20, 24)
    with pytest.raises(ValueError, match=r"channels_last=true is for .* seem to be the first axis"):
        data_set_of(made, "here", channels_last=True)


def test_torch_data_sets_are_taken_as_they_are(tmp_path):
    summaries, _ = run(
        tmp_path / "out", "data=function", "data.function=own_things:pairs", "num_rounds=1"
    )
    assert len(summaries) == 2


def test_a_natural_partition_gives_each_group_to_one_client(tmp_path):
    run(tmp_path / "out", *OWN, "partition=natural", "num_clients=6", "num_rounds=1")
    rows = rows_of(tmp_path / "out" / "clients.csv")
    assert {row["num_examples"] for row in rows} == {"10"}


def test_a_partition_that_changes_its_labels_changes_no_targets():
    settings = resolve(
        configuration(*SMALL, *OWN, "partition=function", "partition.function=own_things:spoils")
    )
    assert set(described_data(settings).labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    "own",
    [
        ["data.function=own_things:drawn"],
        ["model.function=own_things:Projected"],
        ["partition=function", "partition.function=own_things:by_global_chance"],
    ],
)
def test_global_random_numbers_are_the_same_at_every_call_and_stay_as_they_were(own):
    """A client has what the server has, whatever was drawn meanwhile."""
    network = ["model=function", "model.function=own_things:network"]
    settings = resolve(configuration(*SMALL, *OWN, *network, *own))

    def seen():
        data = load_anew(settings)
        model = make_model(settings, data)
        parts = make_partition(settings, data)
        projection = getattr(model, "projection", torch.zeros(1))
        return [data.train_inputs, projection, *map(torch.from_numpy, parts)]

    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    first = seen()
    after = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    assert after == states
    random.random(), np.random.rand(), torch.rand(1)
    assert all(torch.equal(one, other) for one, other in zip(first, seen(), strict=True))


def test_what_a_model_draws_and_keeps_as_a_buffer_travels():
    resolve(configuration(*SMALL, *OWN, "model=function", "model.function=own_things:Kept"))


def test_an_own_model_follows_the_seed_of_the_configuration():
    own = ["model=function", "model.function=own_things:Projected"]
    one, other = (resolve(configuration(*SMALL, *OWN, *own, f"seed={seed}")) for seed in (1, 2))
    data = load_data(one)
    assert not torch.equal(make_model(one, data).projection, make_model(other, data).projection)


def test_a_file_that_is_another_now_is_read_again_at_the_clients_too(tmp_path, monkeypatch):
    monkeypatch.delenv(OWN_VARIABLE, raising=False)
    file = tmp_path / "a.npz"
    for number in (12, 18):
        inputs, labels = np.zeros((number, 3)), np.arange(number) % 3
        train = {"train_inputs": inputs, "train_targets": labels}
        np.savez(file, **train, test_inputs=inputs, test_targets=labels)
        config = resolve(configuration(*SMALL, "data=arrays", f"data.file={file}"))
        made = make_task(*asked(config, describe_task(config), dataset_file=str(file)))
        assert len(made.train_samples[1]) == number // 3


def test_a_function_that_is_another_now_is_called_again(tmp_path, config):
    task = describe_task(config)
    assert len(make_task(*asked(config, task, **NODE)).train_samples[1]) == 20
    shorter = MODULE.replace("samples=60", "samples=15 * 2")
    assert shorter != MODULE
    (tmp_path / "own_things.py").write_text(shorter)
    importlib.invalidate_caches()
    importlib.reload(sys.modules["own_things"])
    assert len(make_task(*asked(config, task, **NODE)).train_samples[1]) == 10


def test_a_module_that_has_changed_since_it_was_imported_is_told_once(tmp_path, caplog):
    resolve(configuration(*SMALL, *OWN))
    for _ in range(2):
        (tmp_path / "own_things.py").write_text(MODULE + "# changed")
        resolve(configuration(*SMALL, *OWN))
    told = [r.getMessage() for r in caplog.records if "since this process imported" in r.message]
    assert len(told) == 1 and "own_things.py has changed" in told[0]


def test_whatever_is_no_file_of_arrays_is_said_in_one_line(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(ValueError, match=r"data\.file=.*one\.npz: expected arrays"):
        resolve(configuration("data=arrays", f"data.file={tmp_path / 'one.npz'}"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.function=nowhere:f"], r"data.function=nowhere:f: nowhere cannot be imported"),
        (["data.function=own_things"], "data.function must be module:function, got 'own_things'"),
        (["data.function=own_things:no"], "own_things has no function 'no'"),
        (["data.function=own_things:exits"], "own_things:exits raised SystemExit: 0"),
        (
            ["partition=function", "partition.function=own_things:by_chance"],
            "expected the same parts each time",
        ),
        (["data.function=own_things:drawn_anew"], "expected the same test_inputs each time, got"),
        (["data.function=own_things:broken"], "own_things:broken raised KeyError: 'column'"),
        (["data.function=own_things:nothing"], "expected a mapping of arrays, got NoneType"),
        (["+data.options.nothing=1"], "raised TypeError: .*unexpected keyword argument 'nothing'"),
        (
            ["model=function", "model.function=own_things:too_few"],
            r"model=function: expected logits of shape \(2, 3\), one for each.* got \(2, 2\)",
        ),
        (["model=function", "model.function=own_things:nothing"], "raised TypeError"),
        (
            ["model=function", "model.function=own_things:Chance"],
            "own_things:Chance: expected the same model each time, .* keep what is drawn as a",
        ),
        (
            ["model=function", "model.function=own_things:Sized"],
            "own_things:Sized: expected the same model each time",
        ),
        (["model=cnn"], r"model=cnn takes pictures of shape .*, got inputs of shape \(5,\)"),
        (["model=lstm"], "model=lstm cannot take float32 inputs"),
        (
            ["partition=function", "partition.function=own_things:twice"],
            "each in one part at most, got 0 to 2, 6 of them twice",
        ),
        (["partition=natural", "num_clients=7"], "expected at most 6, the groups with at least 1"),
        (
            ["client.loss={name: function, function: 'own_things:table'}"],
            "expected a torch.nn.Module that takes logits and targets, got dict",
        ),
        (
            ["client.loss={name: function, function: 'own_things:Each'}"],
            r"own_things:Each: expected a batch's mean loss.* got shape \(16,\) and requires_grad="
            r"True; reduce it by \.mean\(\)",
        ),
        (
            ["client.loss={name: function, function: 'own_things:Detached'}"],
            r"got shape \(\) and requires_grad=False; compute it from the outputs, without detach",
        ),
        (
            ["client.loss={name: function, function: 'own_things:Number'}"],
            "own_things:Number: expected a batch's mean loss.* got float; return such a tensor",
        ),
        (["client.loss={name: function, function: 'own_things:Nothing'}"], "got NoneType"),
        (
            ["client.loss={name: function, function: 'own_things:Endless'}"],
            "own_things:Endless: expected a finite loss of the first batch, got nan",
        ),
        (
            ["client.loss={name: function, function: 'own_things:Unfit'}"],
            "own_things:Unfit raised RuntimeError: .* for 16 samples' outputs and targets",
        ),
        (["client.loss={name: function}"], "client.loss.function must be module:function, got"),
        (
            [
                "partition=function",
                "partition.function=own_things:by_turns",
                "+partition.options.seed=1",
            ],
            "^partition.options: the function of partition.function is given 'seed' already",
        ),
        (
            ["model=mlp", "model.hidden=[1000000000000000]"],
            r"model=mlp cannot be made for inputs of shape \(5,\) and 3 outputs \(RuntimeError",
        ),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve(configuration(*SMALL, *OWN, *overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("table", [3, [1], "ab", {1: 2}])
def test_options_that_are_no_table_are_named(table):
    with pytest.raises(ValueError, match=r"^model\.options: expected a table of options by name"):
        own_options("model.function", {"width": 3}, table)


def arrays(**changes):
    made = {
        "train_inputs": np.zeros((4, 3)),
        "train_targets": np.array([0, 1, 2, 1]),
        "test_inputs": np.zeros((2, 3)),
        "test_targets": np.array([0, 1]),
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test_inputs": None},
            "test_targets, got train_inputs, train_targets, test_targets, without test_inputs$",
        ),
        ({"test_inputs": np.zeros((0, 3))}, r"a sample at least, got \(0, 3\)"),
        ({"train_inputs": np.zeros(4)}, r"train_inputs: expected shape \(N, ...\) .* \(4,\)"),
        ({"train_inputs": np.full((4, 3), np.nan)}, "train_inputs: expected finite numbers"),
        ({"train_inputs": np.full((4, 3), 1e300)}, "train_inputs: expected finite numbers"),
        ({"train_inputs": np.zeros((4, 3), complex)}, "expected real numbers, got torch.complex"),
        ({"test_inputs": np.zeros((2, 5))}, r"inputs of one shape, got \(4, 3\) .* and \(2, 5\)"),
        ({"train_targets": np.zeros((4, 1), int)}, r"shape \(4,\), got \(4, 1\)"),
        ({"train_targets": np.zeros(4)}, "expected integer classes from 0 on, got torch.float64"),
        ({"train_targets": np.array([0, -1, 1, 1])}, "expected classes from 0 on, got -1 to 1"),
        ({"classes": ["a", "b"]}, "expected classes from 0 to 1, as classes has them, got 0 to 2"),
        ({"train_groups": np.zeros(3)}, r"a group for each of 4 training samples, got shape \(3,"),
        ({"classes": 3}, "classes: expected the names of all classes, got 3"),
        ({"train_groups": np.array([1.0, np.nan, 2.0, 2.0])}, "a group for each sample, got NaN"),
        ({"train_groups": np.array(["a", None, "b", "b"])}, "expected names or numbers"),
        ({"train_group": np.zeros(4)}, "expected train_groups, got train_group"),
        ({"groups": np.zeros(4)}, "expected train_groups, got groups"),
        (
            {"groups": np.zeros(4), "train_groups": np.zeros(4)},
            "expected train_groups, got groups",
        ),
        ({"train_inputs": torch.zeros(4, 3).to_sparse()}, "expected a dense array, got one of"),
        ({"classes": ["a"]}, "expected classes from 0 to 0"),
        (
            {"train_targets": np.zeros(4, int), "test_targets": np.zeros(2, int)},
            "here: expected two classes at least, got none but class 0",
        ),
        (
            {"train_targets": np.zeros(4, int), "test_targets": np.zeros(2, int), "classes": ["a"]},
            "here: expected two classes at least, got names of 1",
        ),
        ({"train_targets": np.array([0, 1, 10**9, 1])}, "without large gaps, got 1000000000"),
        ({"train_inputs": [[1, 2], [3]]}, "train_inputs: expected an array of numbers"),
        ({"train_inputs": np.array([["a"]] * 4)}, "train_inputs: expected an array of numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        data_set_of(arrays(**changes), "here")


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("token", [-1, 3])
def test_a_token_that_the_model_has_no_place_for_is_found_before_anything_starts(part, token):
    tokens = {"train": np.zeros((4, 3), int), "test": np.zeros((2, 3), int)}
    tokens[part][-1, 1] = token
    inputs = {f"{name}_inputs": values for name, values in tokens.items()}
    data = data_set_of(arrays(**inputs), "here")
    model = make_model({"model": {"name": "lstm"}}, data)
    ends = f"from {min(0, token)} to {max(0, token)} "
    advice = "number tokens from 0 on" if token < 0 else "here 3: .* names of all as classes"
    with pytest.raises(ValueError, match=f"model=lstm cannot take int64 .*{ends}.*{advice}"):
        check_model(model, data, "lstm")


def test_a_misspelt_array_of_a_file_is_named_once_and_its_file_is_not_called_broken(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(train_group=np.zeros(4)))
    with pytest.raises(
        ValueError, match=r"a\.npz: expected train_groups, got train_group$"
    ) as told:
        read_arrays(tmp_path / "a.npz")
    assert "numpy.savez" not in str(told.value)


def test_a_file_of_another_kind_is_told_without_numpys_advice_to_load_it_unsafely(tmp_path):
    (tmp_path / "a.npz").write_text("1,2")
    with pytest.raises(ValueError, match=r"a\.npz: expected arrays .*it is another kind") as told:
        read_arrays(tmp_path / "a.npz")
    assert "unsafely" not in str(told.value)


def test_a_file_that_is_not_there_or_holds_no_arrays_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.file=.*no\.npz: there is no such file"):
        resolve(configuration("data=arrays", f"data.file={tmp_path / 'no.npz'}"))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"data\.file=.*text\.npz: expected arrays"):
        resolve(configuration("data=arrays", f"data.file={tmp_path / 'text.npz'}"))


def asked(config, task, **node_config):
    """Return a message with such a task and the model's weights, and a node that it comes to."""
    message = message_with(None)
    message.content["config"] = task
    torch.manual_seed(0)
    weights = make_model(config, described_data(config)).state_dict()
    message.content["arrays"] = ArrayRecord(weights)
    node = {key.replace("_", "-"): value for key, value in node_config.items()}
    return message, Context(1, 2, {"partition-id": 0, **node}, RecordDict(), {})


NODE = {"dataset_function": "own_things:table", "model_function": "own_things:network"}


@pytest.fixture
def config(monkeypatch):
    monkeypatch.delenv(OWN_VARIABLE, raising=False)
    model = ["model=function", "model.function=own_things:network"]
    return resolve(configuration(*SMALL, *OWN, *model))


def test_no_name_of_the_users_own_travels(config):
    assert "own_things" not in json.dumps(dict(describe_task(config)))


def test_a_node_uses_what_it_names_itself(config):
    made = make_task(*asked(config, describe_task(config), **NODE))
    assert len(made.train_samples[1]) == 20
    with pytest.raises(ValueError, match=r"data\.function is left to this node.*dataset-function"):
        make_task(*asked(config, describe_task(config)))


@pytest.mark.parametrize("path", [*NAMES, "client.terms.mine"])
def test_a_message_that_names_a_function_or_a_file_is_refused(path, config):
    ((key, text),) = describe_task(config).items()
    described = json.loads(str(text))
    *sections, last = path.split(".")
    table = described
    for section in sections:
        if not isinstance(table.get(section), dict):
            table[section] = {"name": "function"}
        table = table[section]
    table[last] = "os:system"
    message, context = asked(config, ConfigRecord({key: json.dumps(described)}), **NODE)
    with pytest.raises(
        ValueError,
        match="client.terms" if "terms" in path else f"{path} must be named by the node itself",
    ):
        make_task(message, context)

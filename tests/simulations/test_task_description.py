"""Whatever a message holds as its task, a client says in one line what is wrong, or trains it."""

import copy
import json
import random

import pytest
import torch
import torchvision
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedcurv.simulations.configuration import resolve
from fedcurv.simulations.federation.client_app import make_task
from fedcurv.simulations.federation.task_description import describe_task
from fedcurv.simulations.parts.models import mlp
from tests.federation import message_with
from tests.simulations.test_run import configuration

ROWS = "x,label,y\n1,a,2\n3,b,5\n0,a,1\n"
MODEL = mlp((1, 1, 2), 2, hidden=[4])


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    path = tmp_path_factory.mktemp("device") / "a.csv"
    path.write_text(ROWS)
    return Context(1, 2, {"data-csv": str(path), "partition-id": 0}, RecordDict(), {})


@pytest.fixture(scope="module")
def task() -> dict:
    overrides = ["data=device", "data.shape=[1,1,2]", "data.classes=[a,b]", "model.hidden=[4]"]
    config = resolve(configuration(*overrides, "fraction_evaluate=1", "num_clients=2"))
    return json.loads(str(describe_task(config)["fedcurv-task"]))


def asked(text, arrays=None) -> Message:
    message = message_with(None)
    message.content["config"] = ConfigRecord({"fedcurv-task": text})
    message.content["arrays"] = ArrayRecord(MODEL.state_dict()) if arrays is None else arrays
    return message


def changed(task: dict, **changes) -> str:
    """Return the task with, for example, ``client__lr`` set to something else."""
    task = copy.deepcopy(task)
    for path, value in changes.items():
        *tables, key = path.split("__")
        table = task
        for name in tables:
            table = table[name]
        table[key] = value
    return json.dumps(task)


def test_an_honest_description_is_taken(task, context):
    made = make_task(asked(json.dumps(task)), context)
    assert made.train_samples[0].shape == (3, 1, 1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "task: seed must be an integer from 0 to"),
        ({"seed": True}, "task: seed must be an integer"),
        ({"num_clients": 2.0}, "task: num_clients must be an integer"),
        ({"client": []}, r"task: client must be a table, got \[\]"),
        ({"extra": 1}, "unknown: extra"),
        ({"client__lr": "0.1"}, "task: client.lr must be > 0 and finite, got '0.1'"),
        ({"client__lr": 1e300}, r"task\.client\.lr: expected a number of sensible size"),
        ({"client__lr": float("nan")}, "expected finite numbers, got NaN"),
        ({"client__epochs": True}, "task: client.epochs must be an integer >= 1, got True"),
        ({"client__workers": 10**6}, "task: client.workers must be at most"),
        ({"client__num_threads": 10**6}, "task: client.num_threads must be at most"),
        ({"client__speed": 1}, "task: client .*unexpected keyword argument 'speed'"),
        ({"client__loss": ["gce"]}, "task: client.loss"),
        ({"client__stragglers": 3}, "task: client"),
        ({"model__name": "vgg"}, "task: model.name must be one of mlp, cnn, resnet18"),
        ({"model__hidden": 200}, "task: model cannot be meant: TypeError"),
        ({"model__hidden": [10**9, 10**6]}, "task: model: .*hidden.*|task: model: .*shape"),
        ({"model__hidden": [4] * 1000}, "task: model: hidden has 1000 entries, more than arrays"),
        ({"data__shape": [1, 1, 10**9]}, "task: data.shape must have at most"),
        ({"data__name": {"a": 1}}, "task: data"),
        ({"data__classes": [[["a"]]]}, "data.classes must be a list of names|too deep"),
    ],
)
def test_a_description_that_cannot_be_meant(changes, message, task, context):
    with pytest.raises(ValueError, match=message):
        make_task(asked(changed(task, **changes)), context)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "task: expected JSON"),
        ("[" * 100_000, "task: expected JSON of few levels"),
        ("3", "task: expected a table, got 3"),
        ('{"seed": 1, "seed": 2}', "every key once"),
        ("1" * 5000, "task: expected JSON"),
        (" " * 2**21, "at most 1,048,576 characters"),
        (7, "expected a task under 'fedcurv-task' in the message's config, got int"),
    ],
)
def test_a_text_that_is_no_description(text, message, context):
    with pytest.raises(ValueError, match=message):
        make_task(asked(text), context)


def test_no_shape_that_is_only_said_makes_a_client_take_memory(task, context):
    arrays = ArrayRecord(mlp((1, 1, 2), 2, hidden=[4]).state_dict())
    arrays["1.weight"] = Array("float32", (10**7, 10**7), "numpy.ndarray", b"")
    with pytest.raises(ValueError, match=r"'1\.weight' is said to have the shape \(10000000"):
        make_task(asked(changed(task, model__hidden=[10**7]), arrays), context)


@pytest.mark.parametrize("allowed", [False, True])
def test_no_message_makes_a_device_download_what_its_owner_has_not_allowed(
    allowed, task, tmp_path, monkeypatch
):
    fetched = []
    monkeypatch.delenv("FEDCURV_DATA_DOWNLOAD", raising=False)
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda data: fetched.append(data))
    data = {"name": "mnist", "download": True, "root": str(tmp_path), "noise": {"kind": "none"}}
    data |= {"train_samples": None, "validation_samples": 0, "evaluate_on": "test"}
    node = {"data-root": str(tmp_path / "node"), "partition-id": 0}
    node |= {"data-download": "true"} if allowed else {}
    with pytest.raises(FileNotFoundError, match=r"on a node its owner does so: .*data-download=tr"):
        make_task(asked(changed(task, data=data)), Context(1, 2, node, RecordDict(), {}))
    assert bool(fetched) is allowed


WRONG = [None, True, -1, 0, 1.5, 10**12, 10**400, 1e300, "", "a", "é" * 50, [], {}, [[]], [1, -1]]


def spoilt(task: dict, source: random.Random) -> str:
    """Return a description with one to three mutations, of its values or of its text."""
    task = copy.deepcopy(task)
    for _ in range(source.randint(1, 3)):
        table = task
        while True:
            key = source.choice(list(table))
            if isinstance(table[key], dict) and table[key] and source.random() < 0.8:
                table = table[key]
                continue
            break
        how = source.random()
        if how < 0.15 and len(table) > 1:
            del table[key]
        elif how < 0.25:
            table[source.choice(["x", "name", "weight", "lr", "reduction"])] = source.choice(WRONG)
        elif how < 0.35 and isinstance(table[key], int | float) and table[key] < 1e200:
            table[key] = table[key] * source.choice([-1, 0.5, 10, 10**6, 10**20])
        else:
            table[key] = source.choice(WRONG)
    text = json.dumps(task)
    if source.random() < 0.25:
        place = source.randrange(len(text))
        text = (
            text[:place]
            + source.choice(["", "\0", "}", '"', "9" * 30, "[" * 9])
            + text[place + source.randint(0, 3) :]
        )
    return text


@pytest.mark.slow
@pytest.mark.parametrize("of_device", [True, False])
def test_no_mutated_description_is_met_with_another_error_or_with_another_model(
    of_device, task, context
):
    source, accepted = random.Random(11), 0
    if of_device:
        good, arrays = task, None
    else:
        config = resolve(configuration("model.hidden=[4]", "num_clients=2"))
        good = json.loads(str(describe_task(config)["fedcurv-task"]))
        arrays = ArrayRecord(mlp((1, 8, 8), 10, hidden=[4]).state_dict())
    for _ in range(10_000):
        text = spoilt(good, source)
        try:
            made = make_task(asked(text, arrays), context)
        except ValueError as error:
            # the device's own file, where its columns or classes are others than the task's
            own = str(context.node_config["data-csv"])
            assert str(error).startswith(("task:", "task.", own)), (text, error)
            continue
        accepted += 1
        inputs, labels = made.train_samples
        assert inputs.isfinite().all() and len(inputs) == len(labels) > 0, text
        assert made.settings.epochs >= 1 and 0 < made.settings.lr < 2**54, text
        with torch.no_grad():
            outputs = made.model(inputs[:2])
            loss = made.criterion(outputs, labels[:2])
        assert outputs.shape[1] == (2 if of_device else 10), text
        assert loss.ndim == 0 and torch.isfinite(loss), text
    assert 10 < accepted < 5_000

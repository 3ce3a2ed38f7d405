"""Tasks beside classification: trained by a command on a few rows, and judged by their metrics."""

import json
import math

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from sklearn.metrics import r2_score
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.simulations.build import described_data, make_model
from fedcurv.simulations.commands.simulate import main, simulate
from fedcurv.simulations.configuration import resolve
from fedcurv.simulations.console import telling
from fedcurv.simulations.data.own import data_set_of
from fedcurv.simulations.experiments.runs import Plan, Run
from fedcurv.simulations.experiments.tuning import worth
from fedcurv.simulations.federation.client_app import make_task
from fedcurv.simulations.federation.evaluation import Diverged, Evaluation
from fedcurv.simulations.federation.task_description import describe_task, read_task
from fedcurv.simulations.own import OWN_VARIABLE, own_names
from fedcurv.simulations.parts.losses import make_loss
from fedcurv.simulations.parts.metrics import Metric
from fedcurv.simulations.parts.models import MODELS
from fedcurv.simulations.parts.tasks import TASKS
from fedcurv.simulations.reports.sweep import write_sweep
from fedcurv.simulations.tried import check_model
from fedcurv.strategies.loop.rounds import RoundRecord
from tests.federation import message_with
from tests.own_tables import Tagger
from tests.simulations.test_run import configuration, rows_of

SMALL = ["num_clients=3", "num_rounds=3", "client.epochs=2", "partition=iid", "data=function"]
SMALL += ["strategy=[fedavg,fedcurv]", "model.hidden=[]", "client.lr=0.05"]
TABLES = "tests.own_tables"
NUMBERS = ["task=regression", f"data.function={TABLES}:numbers"]
BINARY = ["task=binary", f"data.function={TABLES}:signs", "client.lr=0.5"]
LABELS = ["task=multilabel", f"data.function={TABLES}:signs", "+data.options.columns=3"]
LABELS += ["client.lr=0.5"]
TAGGER = ["model=function", f"model.function={TABLES}:tagger"]
POSITIONS = ["task=per_position", f"data.function={TABLES}:positions", *TAGGER]
POSITIONS += ["client.lr=0.5"]
OF_TASK = {"regression": NUMBERS, "binary": BINARY, "multilabel": LABELS, "per_position": POSITIONS}

pytestmark = pytest.mark.usefixtures("quick_pictures")


def composed(*overrides):
    chosen = [one for one in SMALL if "model" not in one or "model=function" not in overrides]
    return configuration(*chosen, *overrides)


def run(folder, *overrides):
    summaries = simulate(composed(*overrides), folder, command="the command")
    return summaries, rows_of(folder / "metrics.csv")


@pytest.mark.parametrize("runner", ["local", "batched"])
@pytest.mark.parametrize("task", OF_TASK)
def test_each_task_is_learned_with_and_without_fedcurv(task, runner, tmp_path):
    column = "r2" if task == "regression" else "accuracy"
    summaries, rows = run(tmp_path, *OF_TASK[task], f"runner={runner}")
    assert not any(summary.failure or summary.failures for summary in summaries)
    for strategy in ("fedavg", "fedcurv"):
        own = [row for row in rows if row["strategy"] == strategy]
        assert float(own[-1]["loss"]) < 0.9 * float(own[0]["loss"])
        assert float(own[-1][column]) > float(own[0][column])
    assert (tmp_path / f"{column}.png").exists()
    plain, pulled = (row["loss"] for row in rows if row["round"] == "3")
    assert plain != pulled  # the pull is felt
    assert float(rows_of(tmp_path / "clients.csv")[-1]["penalty"]) > 0


def test_a_regressions_tables_speak_of_r2_and_know_no_percent(tmp_path, command):
    words = [*SMALL, *NUMBERS, "metric.targets=[0.5,2]", f"hydra.run.dir={tmp_path / 'out'}"]
    done = command("fedcurv-simulate", main, *words)
    assert done.code == 0, done.errors
    assert "fedavg: round 3/3: R² 0." in done.output
    assert "to 0.5" in done.output and "to 2" in done.output
    for text in (done.output, (tmp_path / "out" / "summary.md").read_text()):
        assert "Test R²; rounds until it first reached a target" in text
        assert "%" not in text and "ccuracy" not in text
    (first, *_) = rows_of(tmp_path / "out" / "summary.csv")
    assert int(first["rounds_to_0.5"]) <= 3 and first["rounds_to_2"] == ""
    assert float(first["best"]) <= 1


def evaluated(task, outputs, targets, number):
    """Return loss and metric of a model that gives these outputs, one row for each input."""
    model = nn.Embedding.from_pretrained(outputs.flatten(1), freeze=False)
    shaped = nn.Sequential(model, nn.Unflatten(1, outputs.shape[1:]))
    samples = torch.arange(len(outputs)), targets
    made = Evaluation(
        shaped,
        samples,
        TASKS[task],
        num_outputs=number,
        metric=TASKS[task].metric,
        function=None,
        device=torch.device("cpu"),
    )
    return made(1, ArrayRecord(shaped.state_dict()))


@pytest.mark.parametrize("spoiled", [-torch.inf, torch.nan])
def test_a_mask_that_was_infinite_at_first_may_be_so_and_no_other(spoiled):
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf, torch.nan]))
    made = Evaluation(
        model,
        (torch.ones(3, 2), torch.tensor([0, 1, 1])),
        TASKS["classification"],
        num_outputs=2,
        metric=TASKS["classification"].metric,
        function=None,
        device=torch.device("cpu"),
    )
    made(1, ArrayRecord(model.state_dict()))
    made.check(RoundRecord(1))
    other = {**model.state_dict(), "mask": torch.tensor([spoiled, -torch.inf, torch.nan])}
    made(2, ArrayRecord(other))
    with pytest.raises(Diverged, match="NaN or inf in mask"):
        made.check(RoundRecord(2))


def test_r2_is_one_less_the_share_of_the_variance_that_is_left():
    torch.manual_seed(0)
    outputs, targets = torch.randn(1500, 3), torch.randn(1500, 3) * torch.tensor([1.0, 5.0, 0.2])
    got = evaluated("regression", outputs, targets, 3)
    expected = r2_score(targets.double(), outputs.double(), multioutput="variance_weighted")
    assert got["r2"] == pytest.approx(expected)
    assert got["loss"] == pytest.approx(float((outputs - targets).square().mean()))
    means = targets.mean(0).expand(1500, 3).contiguous()
    assert evaluated("regression", means, targets, 3)["r2"] == pytest.approx(0, abs=1e-6)


def test_labels_are_counted_one_by_one():
    outputs = torch.tensor([[2.0, -1.0], [-3.0, -1.0], [0.5, 4.0]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    got = evaluated("multilabel", outputs, targets, 2)
    assert got["accuracy"] == pytest.approx(4 / 6)
    p = 1 / (1 + np.exp(-outputs.numpy()))
    by_hand = -np.log(np.where(targets.numpy() == 1, p, 1 - p)).mean()
    assert got["loss"] == pytest.approx(by_hand)


@pytest.mark.parametrize("last", [True, False])
def test_positions_without_a_class_do_not_count(last):
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 7, 3), torch.randint(0, 3, (5, 7))
    targets[torch.rand(5, 7) < 0.4] = -100
    losses, right = [], []
    for row, classes in zip(logits, targets, strict=True):
        for position, label in zip(row, classes, strict=True):
            if label != -100:
                losses.append(-float(position.log_softmax(0)[label]))
                right.append(int(position.argmax()) == int(label))
    outputs = logits if last else logits.movedim(-1, 1).contiguous()
    got = evaluated("per_position", outputs, targets, 3)
    assert got["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert got["accuracy"] == pytest.approx(np.mean(right))
    for name in ("auto", "gce"):
        loss = make_loss(name, TASKS["per_position"])(outputs, targets)
        known = targets != -100
        of_rows = make_loss("cross_entropy" if name == "auto" else name)
        torch.testing.assert_close(loss, of_rows(logits[known], targets[known]))


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_a_model_of_text_predicts_at_every_position_from_what_is_before_it(name, tmp_path):
    small = {"width": 8, "layers": 1, "every_position": True}
    torch.manual_seed(0)
    model = MODELS[name]((7,), 4, **small).double()
    tokens = torch.randint(0, 4, (5, 7))
    other = tokens.clone()
    other[:, 4] = (tokens[:, 4] + 1) % 4
    one, two = model(tokens), model(other)
    torch.testing.assert_close(one[:, :4], two[:, :4], rtol=0, atol=1e-12)
    assert not torch.isclose(one[:, 4:], two[:, 4:]).all()
    got = fisher_diagonal(model, [(tokens, other)])
    expected = dict.fromkeys(got, 0.0)
    for x, y in zip(tokens, other, strict=True):
        log_p = model.eval()(x[None])[0].log_softmax(1)
        model.zero_grad()
        sum(log_p[position, label] for position, label in enumerate(y)).backward()
        for parameter, value in model.named_parameters():
            expected[parameter] = expected[parameter] + value.grad**2 / 5
    for parameter, value in got.items():
        torch.testing.assert_close(value, expected[parameter])
    options = [f"model={name}", *(f"model.{key}={str(v).lower()}" for key, v in small.items())]
    chosen = [one for one in SMALL if "model" not in one]
    words = [*POSITIONS[:2], *options, "client.fisher_kind=empirical", "client.lr=0.5"]
    simulate(configuration(*chosen, *words), tmp_path / "out", command="")
    rows = rows_of(tmp_path / "out" / "metrics.csv")
    assert float(rows[3]["loss"]) < 0.9 * float(rows[0]["loss"])


def test_a_batch_without_any_class_leaves_the_model_as_it_is():
    outputs = torch.randn(2, 3, 4, requires_grad=True)
    make_loss("auto", TASKS["per_position"])(outputs, torch.full((2, 3), -100)).backward()
    assert outputs.grad.eq(0).all()


def test_classes_last_and_second_are_learned_alike(tmp_path):
    _, last = run(tmp_path / "last", *POSITIONS)
    _, second = run(tmp_path / "second", *POSITIONS, "+model.options.last=false")
    assert [row["accuracy"] for row in last] == [row["accuracy"] for row in second]


def test_as_many_classes_as_positions_are_refused_since_either_axis_could_have_them():
    square = np.arange(16).reshape(4, 4) % 4
    data = data_set_of({name: square for name in arrays(0)}, "here", task="per_position")
    with pytest.raises(ValueError, match=r"cannot tell which axis of the outputs \(6, 4, 4\)"):
        check_model(Tagger(4, last=True), data, "mine")


@pytest.mark.parametrize("task", OF_TASK)
def test_a_client_estimates_the_fisher_information_of_the_tasks_likelihood(task, monkeypatch):
    config = resolve(composed(*OF_TASK[task]))
    monkeypatch.setenv(OWN_VARIABLE, own_names(config))
    message = message_with(None)
    message.content["config"] = describe_task(config)
    torch.manual_seed(0)
    weights = make_model(config, described_data(config)).state_dict()
    message.content["arrays"] = ArrayRecord(weights)
    local = make_task(message, Context(1, 2, {"partition-id": 0}, RecordDict(), {}))
    assert local.likelihood == TASKS[task].likelihood
    kind = local.settings.fisher_kind
    got = fisher_diagonal(
        local.model, [local.train_samples], kind=kind, likelihood=local.likelihood
    )
    assert all(float(value.sum()) > 0 for value in got.values())


def test_fisher_information_is_exact_by_itself_and_signed_where_a_sample_has_many_outputs(
    caplog, monkeypatch
):
    monkeypatch.setattr(telling, "_told", set())
    kinds = {task: resolve(composed(*words)) for task, words in OF_TASK.items()}
    settled = {task: config["client"]["fisher_kind"] for task, config in kinds.items()}
    # the tagger has four classes at each of seven positions
    assert settled == dict.fromkeys(OF_TASK, "exact") | {"per_position": "signed"}
    assert "client.fisher_kind=auto: signed, as a sample has 28 outputs" in caplog.text
    chosen = composed(*POSITIONS, "client.fisher_kind=exact")
    assert resolve(chosen)["client"]["fisher_kind"] == "exact"
    with pytest.raises(ValueError, match="fisher_kind must be auto, exact, signed, sampled"):
        resolve(composed(*POSITIONS, "client.fisher_kind=aut"))
    caplog.clear()
    monkeypatch.setattr(telling, "_told", set())
    resolve(composed(*POSITIONS, "strategy=[fedavg]"))
    assert "fisher_kind" not in caplog.text


def test_binary_samples_can_be_dealt_by_class(tmp_path):
    config = resolve(composed(*BINARY, "partition=shards", "num_clients=2"))
    assert set(described_data(config).labels.tolist()) == {0, 1}


def test_a_metric_of_ones_own_is_lower_or_higher_as_it_says(tmp_path):
    own = [f"metric.function={TABLES}:mean_error", "metric.higher_is_better=false"]
    summaries, rows = run(tmp_path, *NUMBERS, *own, "metric.targets=[1.0]")
    errors = [float(row["mean_error"]) for row in rows if row["strategy"] == "fedavg"]
    assert errors[-1] < errors[0]
    assert summaries[0].best == min(errors) and summaries[0].final == errors[-1]
    reached = next(r for r, error in enumerate(errors) if error <= 1.0)
    assert summaries[0].rounds_to == {1.0: reached}
    assert "Test mean_error; rounds until" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "mean_error.png").exists()


def test_a_metric_of_ones_own_judges_classes_too_and_leaves_the_training_as_it_is(tmp_path):
    classes = [f"data.function={TABLES}:rows", "partition=iid"]
    _, plain = run(tmp_path / "plain", *classes)
    own = "metric.function=tests.simulations.test_tasks:by_hand"
    _, judged = run(tmp_path / "own", *classes, own)
    for one, other in zip(plain, judged, strict=True):
        assert one["loss"] == other["loss"]
        assert float(one["accuracy"]) == pytest.approx(float(other["by_hand"]))


def by_hand(outputs, targets):
    right = (outputs.argmax(1) == targets).float().mean()
    targets.zero_()  # whoever is careless does not spoil the test set
    return right


def test_a_regression_that_diverges_is_told_and_counts_as_nothing(tmp_path):
    summaries, _ = run(tmp_path, *NUMBERS, "client.lr=1e12")
    assert all(summary.failure and math.isnan(summary.best) for summary in summaries)
    assert "| fedavg | - | - |" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=ranking", *NUMBERS[1:]], "task must be one of auto, classification, regression"),
        (NUMBERS[1:], r"\(60, 2\); other targets need a task by name: task=regression, task=bin"),
        ([*NUMBERS[1:], "task=classification"], r"shape \(60,\), got \(60, 2\)$"),
        (["task=regression", "data=digits"], "task=regression: data=digits has classes"),
        (
            ["task=binary", "data=device", "data.classes=[a,b]", "fraction_evaluate=1"],
            "task=binary: data=device has classes; give targets of your own by data=function",
        ),
        ([*NUMBERS, "client.loss=gce"], "client.loss must be one of squared_error, .* got 'gce'"),
        ([*NUMBERS, "client.loss={name: huber, delta: 0}"], "delta must be > 0 and finite, got 0"),
        ([*BINARY, "client.loss=cross_entropy"], "one of binary_cross_entropy, .*task=binary"),
        ([*NUMBERS, "partition=shards"], "partition=shards deals by class, .*use iid, quantity"),
        ([*LABELS, "partition=dirichlet"], "partition=dirichlet deals by class"),
        ([*NUMBERS, "data.noise.kind=symmetric"], "wrong labels for task=classification only"),
        ([*NUMBERS, "+data.options.scale=0"], "expected test targets that differ, got equal ones"),
        ([*NUMBERS, f"metric.function={TABLES}:no"], f"{TABLES} has no function 'no'"),
        ([*NUMBERS, f"metric.function={TABLES}:loss"], "'loss' is the name of another column"),
        ([*NUMBERS, "metric.higher_is_better=false"], "higher R² is better"),
        ([*BINARY, "metric.targets=[0.5]"], "those of an accuracy are target_accuracies"),
        ([*NUMBERS, *TAGGER], "model=function cannot take float32 inputs"),
        (
            [*POSITIONS[:2], "client.fisher_kind=empirical", "data.standardise=true"],
            r"expected logits of shape \(2, 4, 7\) or \(2, 7, 4\), one for .* got \(2, 4\)",
        ),
    ],
)
def test_what_does_not_go_with_a_task_is_said_in_one_line_before_anything_trains(
    overrides, message, tmp_path
):
    with pytest.raises(ValueError, match=message) as error:
        simulate(composed(*overrides), tmp_path / "out", command="")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("not_defined", "not_defined: expected a finite number, got nan; what is not defined"),
        ("no_number", r"no_number: expected a number, got Tensor of shape \(\d+, \d\)"),
        ("in_words", "in_words: expected a number, got str"),
    ],
)
def test_a_metric_without_a_value_is_told_before_the_first_round(function, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *NUMBERS, f"metric.function={TABLES}:{function}")
    assert not (tmp_path / "metrics.csv").exists()


def arrays(targets, **more):
    inputs = np.zeros((4, 3))
    made = {"train_inputs": inputs, "test_inputs": inputs}
    return made | {"train_targets": targets, "test_targets": targets} | more


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        ("regression", [0.0, 1.0, math.nan, 2.0], "train_targets: expected finite numbers"),
        ("regression", [True, False, True, True], "expected numbers, got torch.bool"),
        ("regression", np.zeros((4, 2, 2)), r"one or more numbers for each of 4.*\(4, 2, 2\)"),
        ("regression", np.zeros((4, 0)), r"for each of 4 samples, got \(4, 0\)"),
        ("binary", [0, 1, 2, 1], "expected 0 or 1, got numbers from 0 to 2"),
        ("binary", np.zeros((4, 2)), r"0 or 1 for each of 1 labels, got \(4, 2\)"),
        ("multilabel", [0, 1, 0, 1], r"shape \(4, L\), got \(4,\)"),
        ("multilabel", np.full((4, 2), 0.5), "expected 0 or 1, got numbers from 0.5"),
        ("per_position", [0, 1, 2, 1], r"shape \(4, d1, ...\), got \(4,\)"),
        ("per_position", np.full((4, 2), -100), "got none, or -100 everywhere"),
        ("per_position", np.full((4, 2), -1), "expected classes from 0 on, got -1 to -1"),
        ("per_position", np.zeros((4, 2)), "expected integer classes from 0 on, got torch.float64"),
        ("auto", np.zeros(4), "got torch.float64; other targets need a task by name"),
    ],
)
def test_targets_that_a_task_has_not_are_named(task, targets, message):
    with pytest.raises(ValueError, match=message):
        data_set_of(arrays(np.asarray(targets)), "here", task=task)


def test_names_of_classes_that_do_not_fit_the_task_are_refused():
    for task, targets in (("regression", np.zeros(4)), ("binary", np.array([0, 1, 1, 0]))):
        with pytest.raises(ValueError, match=f"task={task}, got names of 3"):
            data_set_of(arrays(targets, classes=list("abc")), "here", task=task)


def test_a_message_with_another_task_is_refused():
    config = resolve(composed(*NUMBERS))
    ((_, text),) = describe_task(config).items()
    described = json.loads(str(text))
    assert read_task(json.dumps(described))["task"] == "regression"
    with pytest.raises(ValueError, match=r"task must be one of classification, .* got 'ranking'"):
        read_task(json.dumps({**described, "task": "ranking"}))
    without = {key: value for key, value in described.items() if key != "task"}
    assert read_task(json.dumps(without))["task"] == "classification"


def test_tuning_takes_the_lower_error_and_never_a_training_that_diverged():
    metric = Metric("error", "error", higher_is_better=False)

    def tried(*scores, failure=""):
        plan = Plan({}, "a", {}, 1, "validation")
        return [Run(plan, list(scores), 1.0, 1.0, failure, metric)]

    early, late = tried(9.0, 1.0, *[0.5] * 5), tried(9.0, 8.0, *[0.5] * 5)
    worse, lost = tried(*[3.0] * 7), tried(9.0, failure="diverged")
    order = sorted([lost, worse, late, early], key=lambda runs: worth(runs, 1.0))
    assert order == [early, late, worse, lost]


def test_a_sweep_over_regressions_has_no_percent(tmp_path):
    for job, best in enumerate(("0.51", "0.53")):
        folder = tmp_path / str(job)
        folder.mkdir()
        (folder / "config.yaml").write_text(f"seed: {job}\ntask: regression\n")
        header = "strategy,best,final,rounds_to_0.5,bytes_down,bytes_up,seconds,lost,rounds,failure"
        (folder / "summary.csv").write_text(f"{header}\nfedavg,{best},0.5,2,1,1,1,0,3,\n")
    write_sweep(tmp_path)
    text = (tmp_path / "sweep.md").read_text()
    assert "| fedavg | 2 | 0.52 ± 0.01414 | 0.5 ± 0 | 2.0 ± 0.0 |" in text
    assert "| best | final | to 0.5 |" in text and "Test R², and rounds" in text
    assert "%" not in text

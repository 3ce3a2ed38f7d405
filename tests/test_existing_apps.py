"""The pages on apps that exist: their changes, made to apps of many shapes, which then run."""

import ast
import contextlib
import io
import os
import re
import statistics
import subprocess
import sys

import pytest
import torch

from tests.changed_apps import APPS, PAGES, Visit, added, copied, diffs, visits_to

SERVER, CLIENT = "quickstart/server_app.py", "quickstart/client_app.py"

MODS = """
from flwr.clientapp.mod import arrays_size_mod, message_size_mod

def own_mod(message, context, call_next):
    assert message.content["arrays"]
    reply = call_next(message, context)
    print("the mod saw", sorted(reply.content))
    return reply

app = ClientApp(mods=[arrays_size_mod, message_size_mod, own_mod])
"""

# what each app needs beside flwr, torch and scikit-learn
SHAPES = {
    "autoencoder": "lightning",
    "dpsgd": "opacus",
    "encoder": "transformers",
    "fedbn": None,
    "lora": "peft",
    "numpyclient": None,
    "segmentation": None,
    "stateful": None,
    "tabular": None,
    "vae": None,
}


def skip_without(library: str | None) -> None:
    if library is not None:
        pytest.importorskip(library, reason=f"{library} is in the extra dev-apps")


def changes_to(app: str) -> list[str]:
    return [name for name in diffs() if name.startswith(f"{app}/")]


def printed(folder, *changed: str, mods: str = "app = ClientApp()\n") -> str:
    """Return what the quickstart prints, with the page's changes to these of its files."""
    app = copied("quickstart", folder, changed=changed)
    client = app / CLIENT
    client.write_text(client.read_text().replace("app = ClientApp()\n", mods))
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        visits_to(app, num_nodes=5)
    return text.getvalue()


def final_accuracy(text: str) -> int:
    (accuracy,) = re.findall(r"accuracy after 10 rounds: (\d+)%", text)
    return int(accuracy)


@pytest.mark.parametrize("app", ["quickstart", *SHAPES])
def test_the_changes_are_two_lines_on_the_server_and_three_on_the_client(app):
    numbers = {name: len(added(diffs()[name])) for name in changes_to(app)}
    assert numbers == {f"{app}/server_app.py": 2, f"{app}/client_app.py": 3}


def test_the_pages_change_all_apps_and_no_others():
    apps = {name.split("/")[0] for name in diffs()}
    folders = {folder.name for folder in APPS.iterdir() if (folder / "pyproject.toml").exists()}
    assert apps == {"quickstart", *SHAPES} == folders - {"faults"}


def by_client(visits: list[Visit], server_round: int) -> dict[int, Visit]:
    return {v.partition: v for v in visits if v.server_round == server_round}


def sum_of(precisions: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: sum(one[name].double() for one in precisions) for name in precisions[0]}


def loss_of(visit: Visit) -> float:
    return visit.metrics["train_loss"]


def mean_loss(visits: dict[int, Visit]) -> float:
    return statistics.fmean(map(loss_of, visits.values()))


def without_epsilon(visit: Visit) -> dict[str, float]:
    return {name: value for name, value in visit.metrics.items() if name != "epsilon"}


def names_of_what_travels(app: str, visit: Visit) -> set[str]:
    """Return which parameters the arrays are that the app sends."""
    reported = visit.precision.keys()
    if app == "numpyclient":  # a list of arrays
        assert visit.arrays == {str(i) for i in range(len(reported))}
        return {"0.weight", "0.bias", "2.weight", "2.bias"}
    if app == "lora":  # PEFT leaves out what its adapter is called
        travels = {
            name
            for name in reported
            if name.replace(".modules_to_save", "").replace(".default", "") in visit.arrays
        }
        assert len(travels) == len(visit.arrays)
        return travels
    return set(visit.arrays)


def require_budgets_that_grow(plain: list[Visit], changed: list[Visit]) -> None:
    """A report costs some of the budget, and a round costs some, with reports or without."""
    budgets = [
        {client: visit.metrics["epsilon"] for client, visit in by_client(visits, round_).items()}
        for visits, round_ in ((plain, 1), (plain, 2), (changed, 1), (changed, 2))
    ]
    for client, once in budgets[0].items():
        twice, once_told, twice_told = (budget[client] for budget in budgets[1:])
        assert 0 < once < once_told < twice_told
        assert once < twice < twice_told


@pytest.mark.parametrize("app", SHAPES)
def test_an_app_of_any_shape_becomes_fedcurv_by_its_lines(app, tmp_path, caplog):
    skip_without(SHAPES[app])
    plain = visits_to(copied(app, tmp_path))
    changed = visits_to(copied(app, tmp_path, changed=changes_to(app)))
    assert "no optimizer stepped" not in caplog.text
    assert "zero for every parameter" not in caplog.text
    assert "leaves next to no training" not in caplog.text

    # what the app itself sends is as before, and before there are sums its training too
    first, second = by_client(changed, 1), by_client(changed, 2)
    assert len(first) == len(second) == 3 and len(changed) == len(plain) == 6
    for visit in plain:
        assert visit.precision is None and visit.sums is None
        assert visit.arrays == first[visit.partition].arrays
        assert visit.metrics.keys() == first[visit.partition].metrics.keys()
    for client, visit in by_client(plain, 1).items():
        assert without_epsilon(visit) == without_epsilon(first[client])

    if app == "dpsgd":
        require_budgets_that_grow(plain, changed)

    # the statistics are those of the parameters that travel, and of no others
    for visit in changed:
        assert visit.precision.keys() == names_of_what_travels(app, visit)
        for name, precision in visit.precision.items():
            assert precision.min() >= 0 and precision.max() > 0, name
    assert all(visit.sums is None for visit in first.values())
    sums = sum_of([visit.precision for visit in first.values()])
    for visit in second.values():
        assert visit.sums.keys() == sums.keys()
        for name, precision in visit.sums.items():
            # to a step of codes with 8 bits, above their least number and below it
            least = 2**-14 * sums[name].max().item()
            torch.testing.assert_close(
                precision.double(), sums[name], rtol=1 / 16, atol=max(least, 1e-6)
            )

    # and they pull every client, which makes its own data fit less well while it still learns
    without = by_client(plain, 2)
    assert all(loss_of(second[c]) != loss_of(without[c]) for c in second)
    assert mean_loss(without) < mean_loss(second) < mean_loss(first)


# without the settings that `flwr run` reads, which this app does not use
ENGINE = """
from fedcurv.simulations.runners.ray import run_on_ray
from stateful.client_app import app as client_app
from stateful.server_app import app as server_app

one_at_a_time = {"client_resources": {"num_cpus": 1}}
run_on_ray(
    server_app, client_app, 3, one_at_a_time | {"init_args": {"address": "local", "num_cpus": 1}}
)
"""


@pytest.mark.slow
def test_on_flowers_engine_mods_and_what_a_client_remembers_end_as_they_do_here(tmp_path):
    folder = copied("stateful", tmp_path, changed=changes_to("stateful"))
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        visits_to(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", ENGINE],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ends = [re.findall(r"round 2: (.*)", text) for text in (here.getvalue(), done.stdout)]
    (local,), (remote,) = ([ast.literal_eval(end) for end in found] for found in ends)
    assert local["rounds"] == 2
    assert remote == pytest.approx(local, rel=1e-5)  # replies are averaged as they arrive


@pytest.fixture(scope="module")
def quickstart_changed(tmp_path_factory) -> str:
    return printed(tmp_path_factory.mktemp("quickstart"), SERVER, CLIENT)


@pytest.mark.slow
def test_the_quickstart_as_it_is_and_changed_ends_as_the_page_says(tmp_path, quickstart_changed):
    text = PAGES[0].read_text(encoding="utf-8")
    plain, changed = re.findall(r"(\d+) % as it is and of (\d+) % with these lines", text)[0]
    as_it_is = printed(tmp_path)
    # another processor or torch may round otherwise
    assert abs(final_accuracy(as_it_is) - int(plain)) <= 4
    assert abs(final_accuracy(quickstart_changed) - int(changed)) <= 4
    # a server without FedCurv gets plain clients, and clients without it are averaged plainly
    assert printed(tmp_path, CLIENT) == printed(tmp_path, SERVER) == as_it_is


@pytest.mark.slow
def test_the_quickstarts_own_mods_stay(tmp_path, quickstart_changed):
    text = printed(tmp_path, SERVER, CLIENT, mods=MODS)
    assert "the mod saw ['arrays', 'fedcurv', 'fedcurv.precision', 'metrics']" in text
    assert final_accuracy(text) == final_accuracy(quickstart_changed)

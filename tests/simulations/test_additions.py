"""A layer rule, a loss, a model and a data set of the package are a file each, named nowhere."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.config_store import ConfigStore
from torch import nn

import fedcurv.losses
import fedcurv.per_sample.rules
import fedcurv.simulations.data.sets
import fedcurv.simulations.parts.models
from fedcurv import fisher_diagonal
from fedcurv.discovery import import_all
from fedcurv.losses import LOSSES, register_loss
from fedcurv.per_sample.rules.registry import RULES, rule_for
from fedcurv.simulations.commands.simulate import simulate
from fedcurv.simulations.configuration import CONF
from fedcurv.simulations.data.sets import DATA_SETS, load, register_data_set
from fedcurv.simulations.groups import store_groups
from fedcurv.simulations.parts.models import MODELS, register_model
from tests.simulations.test_run import configuration, rows_of

PACKAGES = {
    "fedcurv/losses": fedcurv.losses,
    "simulations/parts/models": fedcurv.simulations.parts.models,
    "simulations/data/sets": fedcurv.simulations.data.sets,
    "fedcurv/per_sample/rules": fedcurv.per_sample.rules,
}


def printed_files():
    """Return the files that CONTRIBUTING.md prints: package, name and text of each."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"```python\n# (\S+)/(\w+)\.py\n(.*?)```", text, re.DOTALL)
    return [(PACKAGES[folder], name, block) for folder, name, block in found]


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Put the files where their packages look for modules; afterwards all is as it was."""
    tables = LOSSES, MODELS, DATA_SETS, RULES
    before, names = [dict(table) for table in tables], []
    files = printed_files()
    assert {package for package, _, _ in files} == set(PACKAGES.values())
    for number, (package, name, text) in enumerate(files):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        names.append(f"{package.__name__}.{name}")
    importlib.invalidate_caches()
    for package, _, _ in files:
        import_all(package.__name__, package.__path__)
    store_groups(CONF)
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
    for name in names:
        del sys.modules[name]
    for group, name in (("model", "scaled"), ("data", "largest")):
        del ConfigStore.instance().repo[group][f"{name}.yaml"]


def test_a_file_each_is_all_that_an_addition_takes(added, tmp_path):
    chosen = ["data=largest", "model=scaled", "model.width=5", "client.loss=power"]
    how = ["partition=iid", "num_clients=4", "num_rounds=2", "strategy=[fedavg,fedcurv]"]
    config = configuration(*chosen, *how, "client.epochs=5")
    assert config.model == {"name": "scaled", "width": 5, "hidden": [3]}
    simulate(config, tmp_path / "out", command="it")
    rows = rows_of(tmp_path / "out" / "metrics.csv")
    assert len(rows) == 6 and float(rows[2]["loss"]) < float(rows[0]["loss"])


def test_an_added_layer_rule_is_used_and_right(added):
    model = MODELS["scaled"]((1, 2, 3), 3, width=5)
    assert type(rule_for(model[2])).__name__ == "ScaleRule"
    torch.manual_seed(0)
    inputs, labels = torch.randn(8, 1, 2, 3), torch.randint(0, 3, (8,))
    fisher = fisher_diagonal(model, [(inputs, labels)])["2.factor"]
    loop = torch.zeros(5)
    for x, y in zip(inputs, labels, strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        loop += torch.autograd.grad(loss, model[2].factor)[0].square() / 8
    torch.testing.assert_close(fisher, loop)


@pytest.mark.parametrize(
    ("register", "kind"),
    [(register_loss, "loss"), (register_model, "model"), (register_data_set, "data set")],
)
def test_a_name_that_another_file_has_is_refused_and_the_same_may_come_again(added, register, kind):
    taken = {"loss": "power", "model": "scaled", "data set": "largest"}[kind]
    first = {"loss": LOSSES, "model": MODELS, "data set": DATA_SETS}[kind][taken]
    register(taken)(first)
    with pytest.raises(ValueError, match=f"the {kind} '{taken}' is registered by .*and by .*other"):
        register(taken)(lambda *other: None)


def test_a_data_set_that_is_none_is_told_in_one_line(added):
    register_data_set("rows")(lambda root, download: (torch.ones(3, 2), torch.zeros(3)))
    with pytest.raises(ValueError, match=r"data=rows: expected .*standardised\(.*got tuple"):
        load("rows", "", False)


@pytest.mark.parametrize("group", ["model", "data"])
def test_every_registered_name_can_be_chosen(group):
    for name in {"model": MODELS, "data": DATA_SETS}[group]:
        assert configuration(f"{group}={name}")[group].name == name

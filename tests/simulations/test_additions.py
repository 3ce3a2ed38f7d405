"""A layer rule, a loss, a model and a data set of the package are a file each, named nowhere."""

import importlib
import sys

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
from fedcurv.losses import LOSSES
from fedcurv.per_sample.rules.registry import RULES, rule_for
from fedcurv.simulations.commands.simulate import simulate
from fedcurv.simulations.configuration import CONF
from fedcurv.simulations.data.sets import DATA_SETS
from fedcurv.simulations.groups import store_groups
from fedcurv.simulations.parts.models import MODELS
from tests.simulations.test_run import configuration, rows_of

# by the package that a file is put into, and what is registered there
FILES = {
    fedcurv.losses: """
from fedcurv.losses.base import RobustLoss
from fedcurv.losses.registry import register_loss

@register_loss("added_loss")
class Added(RobustLoss):
    def __init__(self, power=2.0, **options):
        super().__init__(**options)
        self.power = power

    def of_labels(self, logits):
        return 1 - logits.softmax(1) ** self.power
""",
    fedcurv.simulations.parts.models: """
from torch import nn
from fedcurv.simulations.parts.models.registry import register_model

class Scale(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.factor = nn.Parameter(__import__("torch").ones(features))

    def forward(self, x):
        return x * self.factor

@register_model("added_model")
def added(shape, num_classes, *, width=7, hidden=(3,)):
    first, last = nn.Linear(6, width), nn.Linear(width, num_classes)
    return nn.Sequential(nn.Flatten(), first, Scale(width), last)
""",
    fedcurv.per_sample.rules: """
from fedcurv.per_sample.rules.registry import LayerRule, register_rule
from fedcurv.simulations.parts.models.added_file import Scale

@register_rule(Scale)
class ScaleRule(LayerRule):
    parameters = frozenset({"factor"})
    without_input = frozenset()

    def gradients(self, module, x, g):
        return {"factor": x * g}
""",
    fedcurv.simulations.data.sets: """
import torch
from fedcurv.simulations.data.sets.registry import register_data_set, standardised

@register_data_set("added_data")
def added(root, download):
    x = torch.randn(40, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    y = x[:, 0, 0].argmax(1)
    return standardised(x, y, x[:9], y[:9])
""",
}


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Put the files where their packages look for modules; afterwards all is as it was."""
    tables = LOSSES, MODELS, DATA_SETS, RULES
    before, names = [dict(table) for table in tables], []
    for number, (package, text) in enumerate(FILES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "added_file.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        names.append(f"{package.__name__}.added_file")
    importlib.invalidate_caches()
    for package in FILES:
        import_all(package.__name__, package.__path__)
    store_groups(CONF)
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
    for name in names:
        del sys.modules[name]
    for group in ("model", "data"):
        del ConfigStore.instance().repo[group][f"added_{group}.yaml"]


def test_a_file_each_is_all_that_an_addition_takes(added, tmp_path):
    chosen = ["data=added_data", "model=added_model", "model.width=5", "client.loss=added_loss"]
    how = ["partition=iid", "num_clients=4", "num_rounds=2", "strategy=[fedavg,fedcurv]"]
    config = configuration(*chosen, *how, "client.epochs=5")
    assert config.model == {"name": "added_model", "width": 5, "hidden": [3]}
    simulate(config, tmp_path / "out", command="it")
    rows = rows_of(tmp_path / "out" / "metrics.csv")
    assert len(rows) == 6 and float(rows[2]["loss"]) < float(rows[0]["loss"])


def test_an_added_layer_rule_is_used_and_right(added):
    model = MODELS["added_model"]((1, 2, 3), 3, width=5)
    assert type(rule_for(model[2])).__name__ == "ScaleRule"
    torch.manual_seed(0)
    inputs, labels = torch.randn(8, 1, 2, 3), torch.randint(0, 3, (8,))
    fisher = fisher_diagonal(model, [(inputs, labels)])["2.factor"]
    loop = torch.zeros(5)
    for x, y in zip(inputs, labels, strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        loop += torch.autograd.grad(loss, model[2].factor)[0].square() / 8
    torch.testing.assert_close(fisher, loop)


@pytest.mark.parametrize("group", ["model", "data"])
def test_every_registered_name_can_be_chosen(group):
    for name in {"model": MODELS, "data": DATA_SETS}[group]:
        assert configuration(f"{group}={name}")[group].name == name

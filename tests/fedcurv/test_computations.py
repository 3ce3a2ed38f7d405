"""No verdict of one computation decides for another: each is right, whatever came before it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fedcurv import fisher_diagonal
from tests.oracles import fisher as oracle
from tests.zoo import CLASSES

SAMPLES = 6


class Net(nn.Module):
    """What it computes is decided by a flag that neither its class nor its repr shows."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.way = way
        self.hidden = [self.a.weight]
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.a(x))
        return self.h(getattr(self, self.way)(z))

    def plain(self, z: Tensor) -> Tensor:
        return torch.tanh(z)

    def tied(self, z: Tensor) -> Tensor:
        return z @ self.a.weight

    def other(self, z: Tensor) -> Tensor:
        return z @ self.b.weight

    def twice(self, z: Tensor) -> Tensor:
        return self.a(z)

    def by_alias(self, z: Tensor) -> Tensor:
        return z @ self.hidden[0]

    def without_call(self, z: Tensor) -> Tensor:
        return self.b.forward(z)

    def detached(self, z: Tensor) -> Tensor:
        return z @ self.a.weight.detach()

    def centred(self, z: Tensor) -> Tensor:
        return z - z.mean(0) / 2

    def centred_by_constants(self, z: Tensor) -> Tensor:
        return z - z.detach().mean(0) / 2

    def counting(self, z: Tensor) -> Tensor:
        self.seen += 1
        return self.b(z)

    def by_keyword(self, z: Tensor) -> Tensor:
        return self.b(input=z)

    def without_gradients(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.b(z)
        return torch.tanh(self.b(z))

    def frozen_here(self, z: Tensor) -> Tensor:
        self.b.weight.requires_grad_(False)
        z = self.b(z)
        self.b.weight.requires_grad_(True)
        return z

    def frozen_once(self, z: Tensor) -> Tensor:
        return self.frozen_here(self.b(z))

    def in_place(self, z: Tensor) -> Tensor:
        return self.b(z).mul_(2).add_(z)

    def of_a_batch(self, z: Tensor) -> Tensor:
        return self.b(z) if len(z) == 1 else z

    def replaced(self, z: Tensor) -> Tensor:
        weight = self.b.weight
        self.b.weight = nn.Parameter(2 * weight.detach())
        z = self.b(z)
        self.b.weight = weight
        return z + self.b(z)


WAYS = [
    name
    for name, value in vars(Net).items()
    if callable(value) and name not in ("forward", "__init__")
]


def problem(way: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, 6, dtype=torch.float64)
    return Net(way).double(), inputs, torch.arange(SAMPLES) % CLASSES


def assert_right(model: nn.Module, inputs: Tensor, labels: Tensor, **options: object) -> None:
    batches = list(zip(inputs.split(3), labels.split(3), strict=True))
    for given in ([(inputs, labels)], batches):
        got = fisher_diagonal(model, given, **options)
        for name, expected in oracle.empirical(model, inputs, labels).items():
            torch.testing.assert_close(got[name], expected, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("way", WAYS)
def test_another_instance_of_the_same_class_computes_something_else(way):
    assert_right(*problem("plain"))
    assert_right(*problem(way))
    assert_right(*problem("plain"))


@pytest.mark.parametrize("way", WAYS)
def test_a_flag_is_set_on_an_instance_that_was_estimated_before(way):
    model, inputs, labels = problem("plain")
    assert_right(model, inputs, labels)
    model.way = way
    assert_right(model, inputs, labels)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "of_a_batch"])
def test_a_flag_changes_in_the_middle_of_an_estimate(way):
    for first, second in ((way, "tied"), ("plain", way), ("tied", way), (way, "other")):
        model, inputs, labels = problem(first)

        def batches(model=model, inputs=inputs, labels=labels, second=second):
            yield inputs[:3], labels[:3]
            model.way = second
            yield inputs[3:], labels[3:]

        got = fisher_diagonal(model, batches())
        later = oracle.empirical(model, inputs[3:], labels[3:])
        model.way = first
        before = oracle.empirical(model, inputs[:3], labels[:3])
        for name, tensor in got.items():
            torch.testing.assert_close(tensor, (before[name] + later[name]) / 2)


def test_a_class_is_defined_again_under_its_name():
    def defined(body: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.h = nn.Linear(6, 6), nn.Linear(6, CLASSES)

            def forward(self, x: Tensor) -> Tensor:
                return self.h(body(self, torch.tanh(self.a(x))))

        return Model().double()

    _, inputs, labels = problem("plain")
    for body in (lambda m, z: z, lambda m, z: z @ m.a.weight, lambda m, z: m.a(z)):
        assert_right(defined(body), inputs, labels)


@pytest.mark.parametrize("inner", [nn.Linear(6, 6), nn.LSTM(6, 6), nn.Tanh()])
def test_as_many_positions_as_samples_are_not_taken_for_samples(inner):
    class Sequences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.head = nn.Linear(6, 6), inner, nn.Linear(6, CLASSES)
            self.time_first, self.copied = False, False

        def forward(self, x: Tensor) -> Tensor:
            if isinstance(self.inner, nn.LSTM):
                self.inner.batch_first = not self.time_first
            x = x.transpose(0, 1) if self.time_first else x
            x = x.contiguous() if self.copied else x
            z = self.inner(torch.tanh(self.first(x)))
            z = z[0] if isinstance(z, tuple) else z
            return self.head(z.mean(0 if self.time_first else 1))

    torch.manual_seed(0)
    model, labels = Sequences().double(), torch.arange(SAMPLES) % CLASSES
    inputs = torch.randn(SAMPLES, 3, 6, dtype=torch.float64).repeat(1, 2, 1)
    for time_first, copied in ((False, False), (True, False), (False, True), (True, True)):
        model.time_first, model.copied = time_first, copied
        assert_right(model, inputs, labels)


@pytest.mark.parametrize("outer", [False, True])
def test_hooks_of_the_users_own_change_what_a_layer_returns(outer):
    model, inputs, labels = problem("twice")

    def doubled(module, args, output):
        return 2 * output + args[0]

    if outer:
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, output: 2 * output if isinstance(module, nn.Linear) else None
        )
    else:
        handle = model.a.register_forward_hook(doubled)
    try:
        assert_right(model, inputs, labels)
    finally:
        handle.remove()
    model.a.register_forward_pre_hook(lambda module, args: (3 * args[0],))
    assert_right(model, inputs, labels)


@pytest.mark.parametrize(
    "wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_are_computed_from_others(wrap):
    model, inputs, labels = problem("twice")
    wrap(model.a)
    assert_right(model, inputs, labels)


def test_a_module_under_two_names_keeps_its_parameters():
    model, inputs, labels = problem("other")
    model.c = model.a
    before = dict(model.named_parameters())
    assert_right(model, inputs, labels)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_a_pruned_layer():
    model, inputs, labels = problem("twice")
    prune.random_unstructured(model.a, "weight", 0.5)
    assert_right(model, inputs, labels)


def test_wrapped_and_scripted_models():
    model, inputs, labels = problem("by_keyword")
    assert_right(nn.DataParallel(model), inputs, labels)
    scripted = torch.jit.trace(nn.Sequential(model.a, nn.Tanh(), model.h), inputs)
    assert_right(scripted, inputs, labels)


def test_a_pass_without_gradients_under_autocast_leaves_nothing_behind():
    model, inputs, labels = problem("plain")
    model, inputs = model.float(), inputs.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = fisher_diagonal(model, [(inputs, labels)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            model(inputs)
        got = fisher_diagonal(model, [(inputs, labels)])
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name])
        assert name.startswith("b.") or bool(tensor.any())


def test_samples_that_interact_are_found_out_at_every_estimate(caplog):
    assert_right(*problem("plain"))
    for way in ("centred", "centred_by_constants"):
        caplog.clear()
        assert_right(*problem(way))
        assert "so each sample is one of its own" in caplog.text


def test_flags_of_parameters_are_as_before():
    model, inputs, labels = problem("frozen_here")
    model.way = "plain"
    model.h.bias.requires_grad_(False)
    fisher_diagonal(model, [(inputs, labels)])
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["h.bias"]
    assert all(p.grad is None for p in model.parameters())

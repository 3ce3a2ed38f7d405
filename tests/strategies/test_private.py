import math
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
    Krum,
)
from torch import nn

from fedcurv.bounded import Bound
from fedcurv.clients import ClientCurvature, adaptive_clipping_mod, fixed_clipping_mod
from fedcurv.curvature import Curvature
from fedcurv.strategies import FedCurv, PrivateSums, SecureSums
from fedcurv.strategies.private import privacy
from fedcurv.strategies.private.budget import composed, releases_of_model
from fedcurv.strategies.replies.check import Sent
from fedcurv.strategies.replies.settling import Settling
from fedcurv.strategies.wire.bounds import pack_bound, unpack_bound
from fedcurv.strategies.wire.records import PRECISION, WEIGHTED, Instruction
from tests.federation import (
    Federation,
    context_of,
    message_with,
    new_model,
    options,
    same_bits,
    samples,
)
from tests.oracles import private_federation as oracle

NODES, CLIP, DISTANCE, MODEL_CLIP = 4, 0.2, 0.05, 0.1
SERVER, CLIENT = (
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyClientSideFixedClipping,
)
SERVER_ADAPTIVE, CLIENT_ADAPTIVE = (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyClientSideAdaptiveClipping,
)


class Counted:
    """An accountant whose ε is that of the Gaussian mechanism, exact for δ."""

    def __init__(self):
        self.steps = []

    def step(self, *, noise_multiplier, sample_rate):
        assert sample_rate == 1.0
        self.steps.append(noise_multiplier)

    def get_epsilon(self, delta):
        return gaussian_epsilon(math.fsum(z**-2 for z in self.steps) ** -0.5, delta)


def gaussian_epsilon(noise_multiplier, delta):
    """ε of one Gaussian release with sensitivity 1 (Balle and Wang 2018, theorem 8), by halving."""

    def below(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def delta_at(epsilon):
        half, rest = 0.5 / noise_multiplier, epsilon * noise_multiplier
        return below(half - rest) - math.exp(epsilon) * below(-half - rest)

    low, high = 0.0, 500.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


def sums_of(**more):
    given = {
        "clip": CLIP,
        "noise_multiplier": 1e-3,
        "distance": DISTANCE,
        "accountant": Counted(),
        "noise": torch.Generator().manual_seed(7),
        **more,
    }
    return PrivateSums(**given)


def wrapped(kind=SERVER, noise=1e-3, inner=None, **more):
    inner = FedAvg(**options()) if inner is None else inner
    if kind in (SERVER, CLIENT):
        return kind(inner, noise, MODEL_CLIP, NODES)
    return kind(inner, noise, NODES, initial_clipping_norm=MODEL_CLIP, **more)


def private(kind=SERVER, noise=1e-3, strength=0.3, **more):
    return FedCurv(wrapped(kind, noise), strength=strength, private_sums=sums_of(**more))


def adaptive(kind):
    wrapper = wrapped(kind, 0.5, clipped_count_stddev=1.0)
    return FedCurv(wrapper, strength=0.3, private_sums=sums_of())


@pytest.fixture(autouse=True)
def flowers_noise():
    """Flower draws its noise from NumPy's global state."""
    state = np.random.get_state()
    np.random.seed(5)
    yield
    np.random.set_state(state)


@pytest.mark.parametrize("own_loop", [False, True])
@pytest.mark.parametrize("noise", [1e-3, 0.5])
def test_rounds_are_those_that_are_written_out(noise, own_loop):
    strategy = private(noise=noise, noise_multiplier=noise, threshold=1.0)
    federation = Federation(num_nodes=NODES)
    result = federation.run(strategy, num_rounds=4, own_loop=own_loop)
    for_model, for_sums = np.random.RandomState(5), torch.Generator().manual_seed(7)
    deviations = {
        "model": noise * MODEL_CLIP / NODES,
        "precision": noise * CLIP,
        "slope": noise * CLIP * DISTANCE,
    }

    def noise_of(kind, shape):
        if kind == "model":
            return for_model.normal(0, deviations[kind], shape)
        drawn = torch.empty(shape, dtype=torch.float64).normal_(generator=for_sums)
        return drawn.numpy() * deviations[kind]

    history = oracle.run(
        {name: value.double().numpy() for name, value in new_model().state_dict().items()},
        [[one.numpy() for one in samples(i)] for i in range(NODES)],
        strength=0.3,
        num_rounds=4,
        steps=federation.steps,
        lr=federation.lr,
        model_clip=MODEL_CLIP,
        clip=CLIP,
        distance=DISTANCE,
        least=noise * CLIP,
        noise_of=noise_of,
    )
    theta, sums = history[-1]
    assert sum((p > 0).sum() for p, _ in sums.values()) >= 3
    sent = strategy._instruction.sums
    for name, tensor in result.arrays.to_torch_state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), theta[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(sent.precision[name], sums[name][0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            sent.weighted_parameters[name], sums[name][1], rtol=1e-4, atol=1e-6
        )


def test_with_wide_clips_and_next_to_no_noise_it_is_fedcurv():
    wide = PrivateSums(
        clip=1e3, noise_multiplier=1e-10, distance=1e2, threshold=0.0, accountant=Counted()
    )
    wrapper = SERVER(FedAvg(**options()), 1e-10, 1e3, NODES)
    strategies = (
        FedCurv(strength=0.3, **options()),
        FedCurv(wrapper, strength=0.3, private_sums=wide),
    )
    plain, private = (
        Federation(num_nodes=NODES).run(strategy, num_rounds=4).arrays.to_torch_state_dict()
        for strategy in strategies
    )
    for name, value in plain.items():
        torch.testing.assert_close(private[name], value, rtol=1e-4, atol=1e-5)


def test_clipping_at_the_clients_gives_what_clipping_at_the_server_gives():
    results, pulls = [], []
    for kind, mods in ((SERVER, []), (CLIENT, [fixed_clipping_mod])):
        np.random.seed(5)
        federation = Federation(num_nodes=NODES, mods=mods)
        results.append(federation.run(private(kind), num_rounds=3))
        assert set(federation.statuses(3).values()) == {"ok"}
        pulls.append([v.precision["weight"] for v in federation.visits if v.server_round == 3])
    for one, other in zip(*(r.arrays.to_torch_state_dict().values() for r in results), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*pulls, rtol=1e-4, atol=1e-6)


def huge(content):
    """As much curvature as passes for fit, far away."""
    record = content.array_records[PRECISION]
    content[PRECISION] = ArrayRecord(
        {n: Array(np.full(a.shape, 1e20, np.float32)) for n, a in record.items()}
    )


def far(content):
    record = content.array_records["arrays"]
    content["arrays"] = ArrayRecord({n: Array(a.numpy() + 1e3) for n, a in record.items()})
    huge(content)


def moved_by(distance):
    def spoil(content):
        arrays = content.array_records["arrays"].to_torch_state_dict()
        content["arrays"] = ArrayRecord({n: a + distance for n, a in arrays.items()})

    return spoil


def steep(content):
    """A slope without curvature, which an honest client cannot have."""
    record = content.array_records[PRECISION]
    content[WEIGHTED] = ArrayRecord(
        {n: Array(np.full(a.shape, -1e25, np.float32)) for n, a in record.items()}
    )
    content[PRECISION] = ArrayRecord({n: Array(a.numpy() * 0) for n, a in record.items()})


def silent(content):
    content.pop(PRECISION)


@pytest.mark.parametrize("kind", [SERVER, CLIENT])
@pytest.mark.parametrize("spoil", [None, huge, far, steep])
def test_one_client_moves_what_is_released_by_no_more_than_the_clip(spoil, kind, monkeypatch):
    """Before the noise, in the norm for which the noise is measured; and by that much at most."""
    before_noise = []

    def noting(sums, deviation, distance, generator):
        assert (deviation, distance) == (1e-3 * CLIP, DISTANCE)
        before_noise.append(sums)
        return sums

    monkeypatch.setattr(privacy, "noised", noting)
    mods = [fixed_clipping_mod] if kind is CLIENT else []
    for reply in (spoil, silent):
        federation = Federation(num_nodes=NODES, mods=mods, spoil={(1, 2): reply} if reply else {})
        federation.run(private(kind), num_rounds=1)
    with_it, without = before_noise
    moved = math.sqrt(
        sum(
            float(((one[n] - other[n]) / unit).square().sum())
            for one, other, unit in (
                (with_it.precision, without.precision, 1.0),
                (with_it.weighted_parameters, without.weighted_parameters, DISTANCE),
            )
            for n in one
        )
    )
    assert moved <= CLIP * (1 + 1e-9)
    if spoil is not None:
        assert moved >= CLIP * (1 - 1e-9)


@pytest.mark.parametrize("noise_multiplier", [0.3, 3.0])
def test_noise_makes_no_negative_curvature_and_no_far_pull(noise_multiplier):
    federation = Federation(num_nodes=NODES)
    federation.run(
        private(noise_multiplier=noise_multiplier, threshold=0.0, strength=0.01), num_rounds=6
    )
    seen = [v for v in federation.visits if v.precision is not None]
    assert len(seen) == 5 * NODES
    cut = 0
    for visit in seen:
        for name, precision in visit.precision.items():
            assert (precision >= 0).all()
            slope = visit.weighted_parameters[name] - precision * visit.start[name]
            assert (slope.abs() <= DISTANCE * precision + 1e-6).all()
            cut += int((precision == 0).sum())
    assert cut > 0  # else nothing was below 0, and nothing was tested


def test_own_terms_are_taken_off_though_noise_leaves_less_than_them():
    bound, model = Bound(1.0, 0.1), {"w": torch.tensor([1.0, 1.0, 1.0])}
    own = Curvature({"w": torch.tensor([0.3, 0.3, 0.3])}, {"w": torch.tensor([0.33, 0.33, 0.33])})
    sums = Curvature({"w": torch.tensor([0.2, 0.8, 0.3001])}, {"w": torch.tensor([0.2, 0.85, 0.2])})
    rest = bound.rest(sums, own, model)
    torch.testing.assert_close(
        rest.precision["w"], torch.tensor([0, 0.5, 1e-4]).double(), rtol=1e-3, atol=1e-9
    )
    expected = torch.tensor([0, 0.52, 0.9e-4]).double()
    torch.testing.assert_close(rest.weighted_parameters["w"], expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("multipliers", [[1.0, 2.0], [0.7], [3.0, 4.0, 5.0, 6.0]])
def test_gaussian_releases_compose_into_one(multipliers):
    """The mean of the privacy loss of releases adds up: 1/(2σ²) of each."""
    total = sum(1 / (2 * z * z) for z in multipliers)
    assert composed(multipliers) == pytest.approx((2 * total) ** -0.5)
    if len(multipliers) == 2:
        z1, z2 = multipliers
        assert composed(multipliers) == pytest.approx((z1**-2 + z2**-2) ** -0.5)


def test_composition_is_that_of_the_likelihood_ratio():
    """Two releases of (0, 0) or (1, 1) with noises z1, z2: δ(ε) by integration over both."""
    z1, z2, epsilon = 1.5, 0.9, 1.0
    grid = np.linspace(-14, 15, 2501)
    a, b = np.meshgrid(grid, grid, indexing="ij")

    def density(centre):
        return np.exp(-((a - centre) ** 2) / (2 * z1**2) - (b - centre) ** 2 / (2 * z2**2)) / (
            2 * np.pi * z1 * z2
        )

    over = np.maximum(density(1.0) - math.exp(epsilon) * density(0.0), 0.0)
    delta = float(over.sum() * (grid[1] - grid[0]) ** 2)
    assert gaussian_epsilon(composed([z1, z2]), delta) == pytest.approx(epsilon, rel=1e-4)


def test_budget_is_that_of_model_and_sums_together():
    strategy = private(noise=4.0, noise_multiplier=2.0)
    federation = Federation(num_nodes=NODES)
    result = federation.run(strategy, num_rounds=3)
    for rounds in (1, 2, 3):
        expected = gaussian_epsilon((rounds * (4.0**-2 + 2.0**-2)) ** -0.5, 1e-5)
        assert result.train_metrics_clientapp[rounds]["epsilon"] == pytest.approx(expected)
        assert federation.rounds[rounds].train_metrics["epsilon"] == pytest.approx(expected)


def test_opacus_accountants_agree_with_the_formula():
    accountants = pytest.importorskip("opacus.accountants", reason="needs the extra privacy")
    for make, slack in ((accountants.RDPAccountant, 0.15), (accountants.PRVAccountant, 0.03)):
        strategy = private(noise=8.0, noise_multiplier=6.0, accountant=make())
        result = Federation(num_nodes=NODES).run(strategy, num_rounds=2)
        exact = gaussian_epsilon((2 * (8.0**-2 + 6.0**-2)) ** -0.5, 1e-5)
        told = result.train_metrics_clientapp[2]["epsilon"]
        assert exact * (1 - 1e-3) <= told <= exact * (1 + slack)


@pytest.mark.parametrize("weights", [[12, 12, 12, 12], [12, 12, 12], [30, 1, 1, 10], [5]])
def test_unequal_weights_and_lost_replies_are_counted_as_what_they_are(weights):
    """Against the greatest change of the weighted mean, tried out at each client."""
    wrapper = wrapped(noise=2.0)
    (multiplier,) = releases_of_model(wrapper, MODEL_CLIP, weights)
    updates = np.zeros((len(weights), 3))
    moves = []
    for j in range(len(weights)):
        updates[:] = 0
        updates[j, 0] = MODEL_CLIP
        moves.append(np.linalg.norm(np.average(updates, axis=0, weights=weights)))
    deviation = 2.0 * MODEL_CLIP / NODES
    assert multiplier == pytest.approx(deviation / max(moves))


@pytest.mark.parametrize("kind", [SERVER_ADAPTIVE, CLIENT_ADAPTIVE])
def test_adaptive_clipping_counts_its_count_and_the_noise_that_was_drawn(kind):
    """Flower's noise goes by the norm that a round ends with, its clip by the one it began with."""
    inner = wrapped(kind, 0.5, clipped_count_stddev=1.0)
    of_model = (0.5**-2 - 2.0**-2) ** -0.5  # so that model and count together have 0.5
    assert inner.noise_multiplier == pytest.approx(of_model)
    strategy = FedCurv(inner, strength=0.3, private_sums=sums_of(noise_multiplier=0.7))
    mods = [adaptive_clipping_mod] if kind is CLIENT_ADAPTIVE else []
    federation, norms = Federation(num_nodes=NODES, mods=mods), []
    federation.run(
        strategy, num_rounds=2, on_round=lambda record: norms.append(inner.clipping_norm)
    )
    began, first, second = norms
    assert began == MODEL_CLIP
    expected = [
        (0.7**-2 + 2.0**-2 + (of_model * now / before) ** -2) ** -0.5
        for before, now in ((began, first), (first, second))
    ]
    assert strategy._privacy.budget.rounds == pytest.approx(expected, rel=1e-9)
    assert abs(first / began - 1) > 1e-3


def test_without_statistics_it_is_flowers_wrapper_to_the_bit_and_is_counted():
    results = []
    for strategy in (wrapped(noise=1.0), private(noise=1.0, strength=0.0)):
        np.random.seed(5)
        results.append(Federation(num_nodes=NODES).run(strategy, num_rounds=2))
    assert same_bits(results[0].arrays, results[1].arrays)
    told = results[1].train_metrics_clientapp[2]["epsilon"]
    assert told == pytest.approx(gaussian_epsilon(2**-0.5, 1e-5))


def test_budget_goes_on_where_a_checkpoint_was_saved(tmp_path):
    whole = Federation(num_nodes=NODES).run(private(noise=4.0), num_rounds=4)
    Federation(num_nodes=NODES).run(private(noise=4.0), num_rounds=2, checkpoint=tmp_path)
    again = private(noise=4.0)
    resumed = Federation(num_nodes=NODES).run(again, num_rounds=4, checkpoint=tmp_path, resume=True)
    for rounds in (3, 4):
        told = [r.train_metrics_clientapp[rounds]["epsilon"] for r in (whole, resumed)]
        assert told[0] == pytest.approx(told[1])


def test_a_checkpoint_whose_rounds_were_not_counted_is_refused(tmp_path):
    plain = FedCurv(strength=0.3, **options())
    Federation(num_nodes=NODES).run(plain, num_rounds=1, checkpoint=tmp_path)
    state = plain.state_dict()
    state["strategy"] = private().state_dict()["strategy"]
    with pytest.raises(ValueError, match="expected the checkpoint of a training with private_sums"):
        private().load_state_dict(state)
    with pytest.raises(ValueError, match="expected noise multipliers > 0"):
        private().load_state_dict(state | {"privacy": [1.0, 0.0]})


def test_a_round_without_a_model_counts_its_sums_alone():
    def lost(content):
        raise ConnectionError("lost")

    strategy = private(noise=4.0, noise_multiplier=2.0)
    Federation(num_nodes=NODES, spoil={(2, 1): lost}).run(strategy, num_rounds=3)
    both = composed([4.0, 2.0])
    assert strategy._privacy.budget.rounds == pytest.approx([both, 2.0, both])


REFUSED = {
    "no wrapper": (lambda: FedCurv(strength=1, private_sums=sums_of()), "around FedAvg, which"),
    "no private sums": (
        lambda: FedCurv(wrapped(), strength=1),
        r"expected private_sums=PrivateSums\(...\) around DifferentialPrivacyServerSideFixed",
    ),
    "FedAdam": (
        lambda: FedCurv(wrapped(inner=FedAdam(**options())), strength=1, private_sums=sums_of()),
        "expected FedAvg or FedProx inside .*, got FedAdam",
    ),
    "Krum": (
        lambda: FedCurv(wrapped(inner=Krum(**options())), strength=1, private_sums=sums_of()),
        "expected FedAvg or FedProx inside .*, got Krum",
    ),
    "no noise": (
        lambda: FedCurv(wrapped(noise=0.0), strength=1, private_sums=sums_of()),
        "expected a finite noise_multiplier > 0, got 0",
    ),
    "a number": (
        lambda: FedCurv(wrapped(), strength=1, private_sums=0.1),
        r"expected private_sums=PrivateSums\(...\), got 0.1",
    ),
    "no clip": (lambda: sums_of(clip=0.0), "clip must be a finite number > 0"),
    "no distance": (lambda: sums_of(distance=math.nan), "distance must be a finite number > 0"),
    "no delta": (lambda: sums_of(delta=0.0), "delta must lie between 0 and 1"),
    "threshold": (lambda: sums_of(threshold=-1.0), "threshold must be >= 0"),
    "parameters": (lambda: sums_of(parameters="weight"), "parameters must be a list of names"),
    "accountant": (lambda: sums_of(accountant=Counted), "accountant must count releases"),
    "inside": (
        lambda: Federation().run(SERVER(FedCurv(strength=1), 1.0, 1.0, 4)),
        r"write FedCurv\(DifferentialPrivacyServerSideFixedClipping\(FedAvg",
    ),
    "SecureSums": (lambda: SecureSums(private()), "secure_sums=False"),
}
for name, option in {
    "secure sums": {"secure_sums": True},
    "bits": {"bits": 4},
    "robust": {"robust": "median"},
    "max_distance": {"max_distance": 5.0},
    "max_trace": {"max_trace": 5.0},
}.items():
    REFUSED[name] = (
        lambda option=option: FedCurv(wrapped(), strength=1, private_sums=sums_of(), **option),
        "private_sums goes without {}=".format(*option),
    )


@pytest.mark.parametrize("make, says", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_private_is_refused_in_one_line(make, says):
    with pytest.raises((TypeError, ValueError), match=says) as told:
        make()
    assert "\n" not in str(told.value)


def test_fedprox_inside_is_fine():
    inner = FedProx(proximal_mu=0.1, **options())
    strategy = FedCurv(wrapped(inner=inner), strength=0.3, private_sums=sums_of())
    Federation(num_nodes=NODES).run(strategy, num_rounds=2)


def test_a_model_with_running_statistics_is_refused_before_anything_is_sent():
    arrays = ArrayRecord(nn.BatchNorm1d(2).state_dict())
    with pytest.raises(TypeError, match=r"expected a model of parameters alone.*GroupNorm"):
        private()._privacy.begin(arrays, [], asks=True)


def test_a_message_without_the_parameters_names_is_told_so():
    message = message_with(Instruction(0.1, 1))
    message.content["fedcurv.bound"] = pack_bound(Bound(1.0, 0.1))
    message.content["arrays"] = ArrayRecord([p.detach().numpy() for p in new_model().parameters()])
    with pytest.raises(ValueError, match="expected the model's arrays, by the names of its param"):
        ClientCurvature(message, context_of(0), new_model())


NO_BOUNDS = [{}, {"clip": 1.0, "distance": 0.0}, {"clip": 1, "distance": 1.0}]


@pytest.mark.parametrize("config", NO_BOUNDS)
def test_a_bound_that_no_server_sends_is_refused(config):
    content = RecordDict({"fedcurv.bound": ConfigRecord(config)})
    with pytest.raises(ValueError, match=r"expected a number > 0 for '(clip|distance)'"):
        unpack_bound(content)


def test_a_client_that_does_not_clip_is_refused_where_clients_should():
    """Flower's wrapper would take its word for it, and the budget would be wrong."""

    federation = Federation(num_nodes=NODES, mods=[], plain=frozenset({3}), lr=1e-3)
    federation.spoil = {(1, j): moved_by(0.2) for j in (1, 3)}
    federation.run(private(CLIENT), num_rounds=1)
    assert federation.statuses(1) == {"0": "ok", "1": "refused", "2": "ok", "3": "refused"}
    says = "expected a model no farther than 0.1, the clipping norm, .*fixed_clipping_mod"
    assert all(re.search(says, reason) for reason in federation.reasons(1).values())


def test_running_statistics_under_flowers_wrapper_keep_its_noise():
    """They would else be the clients' exact mean, which nothing protects."""
    sent = ArrayRecord({"norm.running_mean": Array(np.zeros(3))})
    reply = RecordDict({"arrays": ArrayRecord({"norm.running_mean": Array(np.ones(3))})})
    noisy = ArrayRecord({"norm.running_mean": Array(np.full(3, 7.0))})
    for strategy, expected in ((wrapped(), 7.0), (FedAvg(), 1.0)):
        finish = Settling().prepare(strategy, Sent.of(sent), (), [(reply, 1.0)])
        assert (finish(1, noisy)["norm.running_mean"].numpy() == expected).all()


def test_flowers_own_mods_see_no_record_of_ours_and_the_app_sees_all():
    seen = []

    def witness(message, context, call_next):
        seen.append((set(message.content), set((reply := call_next(message, context)).content)))
        return reply

    federation = Federation(num_nodes=NODES, mods=[fixed_clipping_mod, witness])
    federation.run(private(CLIENT), num_rounds=2)
    sent, answered = seen[-1]
    ours = {"fedcurv", "fedcurv.bound", "fedcurv.precision", "fedcurv.weighted-parameters"}
    assert ours <= sent | {"fedcurv.precision", "fedcurv.weighted-parameters"}
    assert {"fedcurv", "fedcurv.precision", "fedcurv.weighted-parameters"} <= answered
    assert federation.rounds[-1].clients[0].up.keys() >= {"fedcurv.precision"}


def unmoved(content):
    """The reply of a client that has learned nothing."""
    content["arrays"] = ArrayRecord(new_model().state_dict())


STRATEGIES_AND_MODS = {
    "fixed": (private, []),
    "adaptive": (lambda: adaptive(SERVER_ADAPTIVE), []),
    "without statistics": (lambda: private(strength=0.0), []),
    "Flower's wrapper alone": (wrapped, []),
    "fixed, at the clients": (lambda: private(CLIENT), [fixed_clipping_mod]),
    "adaptive, at the clients": (lambda: adaptive(CLIENT_ADAPTIVE), [adaptive_clipping_mod]),
}


@pytest.mark.parametrize("make, mods", STRATEGIES_AND_MODS.values(), ids=STRATEGIES_AND_MODS.keys())
def test_an_unmoved_model_is_one_of_those_that_are_averaged(make, mods):
    """It is what a client's neighbour sends; Flower divides by the norm of its update."""
    federation = Federation(num_nodes=NODES, mods=mods, spoil={(1, 2): unmoved})
    federation.run(make(), num_rounds=1)
    assert set(federation.statuses(1).values()) == {"ok"}


def test_an_unmoved_model_counts_with_an_update_of_zero():
    results = []
    for spoil in ({}, {(1, 2): unmoved}):
        np.random.seed(5)
        federation = Federation(num_nodes=NODES, spoil=spoil)
        results.append(federation.run(private(noise=1e-9), num_rounds=1).arrays)
    before = new_model().state_dict()
    honest, with_zero = (
        {n: a - before[n] for n, a in r.to_torch_state_dict().items()} for r in results
    )
    without = [v.solution for v in federation.visits if v.partition != 2]
    assert len(without) == NODES - 1
    for name, value in with_zero.items():
        clipped = 0.0
        for solution in without:
            update = {n: s - before[n] for n, s in solution.items()}
            length = math.sqrt(sum(float(u.square().sum()) for u in update.values()))
            clipped = clipped + update[name] * min(1.0, MODEL_CLIP / length)
        torch.testing.assert_close(value, clipped / NODES, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(value, honest[name], rtol=1e-3)


def test_rounds_between_checkpoints_are_refused_as_they_would_be_released_twice(tmp_path):
    says = "expected checkpoint_every=1 with FedCurv, got 3: a resume repeats"
    with pytest.raises(ValueError, match=says) as told:
        Federation(num_nodes=NODES).run(private(), checkpoint=tmp_path, checkpoint_every=3)
    assert "\n" not in str(told.value)
    plain = FedCurv(strength=0.3, **options())
    Federation(num_nodes=NODES).run(plain, checkpoint=tmp_path, checkpoint_every=3)


def test_a_round_that_ends_while_its_model_is_evaluated_is_not_released_again(tmp_path):
    def ends(server_round, arrays):
        if server_round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Federation(num_nodes=NODES).run(private(), checkpoint=tmp_path, evaluate_fn=ends)
    again, federation = private(noise=4.0), Federation(num_nodes=NODES)
    federation.run(again, num_rounds=3, checkpoint=tmp_path, resume=True)
    assert {visit.server_round for visit in federation.visits} == {3}
    assert len(again._privacy.budget.rounds) == 3


def without_bias(content):
    precision = content.array_records[PRECISION]
    content[PRECISION] = ArrayRecord({n: a for n, a in precision.items() if n != "bias"})


def other_metrics(content):
    ((name, metrics),) = content.metric_records.items()
    del content[name]
    content["own"] = MetricRecord({"num-examples": metrics["num-examples"], "accuracy": 0.5})


def other_records(content):
    content["model"] = content.pop("arrays")
    other_metrics(content)


@pytest.mark.parametrize("spoil", [without_bias, other_metrics, other_records])
@pytest.mark.parametrize("last", [None, silent])
def test_no_vote_among_clients_decides_whose_model_counts(spoil, last):
    """Two say one thing and two another; what the last one does must not matter to the others."""
    federation = Federation(num_nodes=NODES)
    federation.spoil = {(1, 2): spoil, (1, 3): last or spoil}
    strategy = private()
    result = federation.run(strategy, num_rounds=1)
    assert set(federation.statuses(1).values()) == {"ok"}
    assert result.train_metrics_clientapp[1]["epsilon"] > 0.0
    assert strategy._instruction.sums.precision.keys() == {"weight", "bias"}
    left_out = {without_bias: 2 if last is None else 1}.get(spoil, 0)
    assert len(strategy.left_out) == left_out
    says = r"expected statistics of weight, bias, .*got only weight; .*parameters=\[\.\.\.\]"
    assert all(re.search(says, reason) for reason in strategy.left_out.values())


def test_metrics_that_a_client_lacks_count_as_the_others_mean():
    federation = Federation(num_nodes=NODES, spoil={(1, 1): other_metrics})
    told = federation.run(private(), num_rounds=1).train_metrics_clientapp[1]
    assert told.keys() == {"loss", "epsilon"}
    assert told["loss"] == pytest.approx(1.0)


def test_sums_of_the_named_parameters_alone():
    federation = Federation(num_nodes=NODES)
    federation.spoil = {(1, i): without_bias for i in range(NODES)}
    strategy = private(parameters=["weight"])
    federation.run(strategy, num_rounds=1)
    assert strategy._instruction.sums.precision.keys() == {"weight"}
    assert strategy.left_out == {}
    with pytest.raises(TypeError, match=r"expected parameters of the model, got 'scale'"):
        Federation(num_nodes=NODES).run(private(parameters=["scale"]))


@pytest.mark.parametrize("reporters", [0, 1])
def test_sums_are_released_however_many_report(reporters):
    """Else whether there are any says that one client has reported."""
    spoil = {(1, i): silent for i in range(reporters, NODES)}
    strategy = private(noise=4.0, noise_multiplier=2.0, threshold=0.0)
    federation = Federation(num_nodes=NODES, spoil=spoil)
    federation.run(strategy, num_rounds=2)
    assert strategy._privacy.budget.rounds == pytest.approx([composed([4.0, 2.0])] * 2)
    pulls = [v.precision for v in federation.visits if v.server_round == 2]
    assert [pull is None for pull in pulls].count(True) == reporters  # whose own terms are alone
    assert any(float(p["weight"].sum()) > 0 for p in pulls if p is not None)


def test_a_reply_without_the_bit_that_adaptive_clipping_counts_is_refused():
    def without_bit(message, context, call_next):
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 1:
            ((name, metrics),) = reply.content.metric_records.items()
            reply.content[name] = MetricRecord(
                {n: m for n, m in metrics.items() if n != "norm_bit"}
            )
        return reply

    federation = Federation(num_nodes=NODES, mods=[without_bit, adaptive_clipping_mod])
    federation.run(adaptive(CLIENT_ADAPTIVE), num_rounds=1)
    assert list(federation.statuses(1).values()) == ["ok", "refused", "ok", "ok"]
    assert "adaptive_clipping_mod" in next(iter(federation.reasons(1).values()))


UNCLIPPED = {
    "no dimension": (np.zeros(()), r"expected arrays of one dimension or more, got 'w'"),
    "a mask": (np.array([0.0, -np.inf]), "expected a model of finite numbers, got 'w'"),
}


@pytest.mark.parametrize("array, says", UNCLIPPED.values(), ids=UNCLIPPED)
def test_what_flowers_clipping_leaves_as_it_is_is_refused(array, says):
    with pytest.raises(TypeError, match=says):
        private()._privacy.begin(ArrayRecord({"w": Array(array)}), [], asks=True)

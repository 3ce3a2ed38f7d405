"""Random numbers of a forward pass, by sample.

A model that draws in eval mode (a variational autoencoder, dropout that is always on) computes
something else each time, and its information is that of one draw: of what a pass over a batch
draws each sample has its own part, and what has no parts is shared by all. A pass over one of the
samples, which shows whether they interact and what no closed form does, gets what the batch drew
for it in the place of numbers of its own. Whether these are the right ones the outputs tell.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedcurv.global_state import random_states, random_states_kept, same_states, set_random_states
from fedcurv.per_sample.rounding import close
from fedcurv.per_sample.samples import Samples
from fedcurv.per_sample.surroundings import buffers_kept
from fedcurv.per_sample.watched import differing_axis

# operations of torch whose results hold all that they draw
_DRAWING = frozenset(
    f"aten::{name}"
    for name in (
        *("rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm"),
        *("bernoulli", "bernoulli_", "binomial", "cauchy", "cauchy_", "exponential"),
        *("exponential_", "geometric", "geometric_", "log_normal", "log_normal_", "multinomial"),
        *("native_dropout", "normal", "normal_", "poisson", "random", "random_", "uniform"),
        *("uniform_", "_sample_dirichlet", "_standard_gamma"),
    )
)


class DrawsError(Exception):
    """What a pass drew cannot be given to another."""


class Draw(NamedTuple):
    """One operation that drew.

    Attributes:
        func: the operation.
        entered: what its distribution depends on, such as probabilities.
        results: what was drawn.
    """

    func: Any
    entered: Sequence[Tensor]
    results: Sequence[Tensor]


# from something of a pass over all samples, and the shape that is wanted, to what another pass gets
_PartOf = Callable[[Tensor, Sequence[int]], Tensor]


class Draws:
    """What a pass over some samples drew.

    Args:
        samples: how many there were.
        states: of the random numbers before it; see ``random_states``.
        device: where.
    """

    def __init__(self, samples: int, states: Sequence[Tensor], device: torch.device) -> None:
        self._samples = samples
        self._states = states
        self._device = device
        self._draws: list[Draw] = []

    def __len__(self) -> int:
        """Return how many operations have drawn."""
        return len(self._draws)

    def recording(self) -> TorchDispatchMode:
        """Return a context for the pass over all of the samples."""
        return _Recording(self._draws)

    @contextmanager
    def of_one(self, sample: int) -> Iterator[None]:
        """Give a pass over this sample what was drawn for it.

        Raises:
            DrawsError: if it draws more or less, or otherwise.
        """

        def part_of(value: Tensor, shape: Sequence[int]) -> Tensor:
            axis, length = self._where(value.shape, shape)
            return value if axis is None else value.narrow(axis, sample * length, length)

        given = _Giving(self._draws, part_of, strictly=True)
        with random_states_kept(self._device):
            if self._samples == 1:
                set_random_states(self._states, self._device)
                yield
                return
            with given:
                yield
        given.require_end()

    @contextmanager
    def of_each(self, first: int, number: int) -> Iterator[None]:
        """Give ``torch.func.vmap`` over this many samples, from the first on, what each has drawn.

        Raises:
            DrawsError: as ``of_one``.
        """

        def part_of(value: Tensor, shape: Sequence[int]) -> Tensor:
            if not shape or shape[0] != number:
                raise DrawsError
            axis, length = self._where(value.shape, shape[1:])
            if axis is None:
                return value.expand(*shape)
            rows = value.narrow(axis, first * length, number * length)
            return rows.reshape(shape) if axis == 0 else rows.movedim(axis, 0).reshape(shape)

        given = _Giving(self._draws, part_of, strictly=False)
        with random_states_kept(self._device), given:
            yield
        given.require_end()

    def _where(self, shape: Sequence[int], of_one: Sequence[int]) -> tuple[int | None, int]:
        """Return the samples' axis, None if they share it all, and how long a sample is on it."""
        if tuple(shape) == tuple(of_one):
            return None, 0
        if (axis := differing_axis(self._samples, shape, of_one)) is not None:
            return axis, 1
        if shape[1:] == of_one[1:] and shape[:1] == torch.Size([self._samples * of_one[0]]):
            return 0, of_one[0]
        raise DrawsError


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Keeps all that is drawn."""

    def __init__(self, draws: list[Draw]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._draws = draws

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the operation."""
        result = func(*args, **(kwargs or {}))
        if func._schema.name in _DRAWING:
            draw = _draw_of(func, args, kwargs or {}, result)
            copies = ([tensor.clone() for tensor in tensors] for tensors in draw[1:])
            self._draws.append(Draw(func, *copies))
        return result


class _Giving(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Gives what was drawn before, in order.

    Args:
        draws: of a pass over all samples.
        part_of: says which part of them this pass gets.
        strictly: whether what enters the operations has to be a part of what entered before.
    """

    def __init__(self, draws: Sequence[Draw], part_of: _PartOf, *, strictly: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self._left = iter(draws)
        self._part_of = part_of
        self._strictly = strictly

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the operation, and put what was drawn before into its results."""
        result = func(*args, **(kwargs or {}))
        if func._schema.name in _DRAWING:
            self._give(_draw_of(func, args, kwargs or {}, result))
        return result

    def _give(self, draw: Draw) -> None:
        before = next(self._left, None)
        if before is None or len(before.results) != len(draw.results):
            raise DrawsError
        if self._strictly:
            if before.func != draw.func or len(before.entered) != len(draw.entered):
                raise DrawsError
            for value, of_all in zip(draw.entered, before.entered, strict=True):
                if not close(value, self._part_of(of_all, value.shape)):
                    raise DrawsError
        for value, of_all in zip(draw.results, before.results, strict=True):
            value.copy_(self._part_of(of_all, value.shape))

    def require_end(self) -> None:
        """Refuse a pass that has drawn less than is there."""
        if next(self._left, None) is not None:
            raise DrawsError


def _draw_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Draw:
    results = list(_tensors_in(result))
    if func._schema.name.endswith("_like"):  # of whose argument the shape alone enters
        return Draw(func, [], results)
    entered = [
        value
        for value in _tensors_in([*args, *kwargs.values()])
        if value.is_floating_point() and not any(value is one for one in results)
    ]
    return Draw(func, entered, results)


def _tensors_in(values: Any) -> Iterator[Tensor]:
    for value in values if isinstance(values, tuple | list) else [values]:
        if isinstance(value, Tensor):
            yield value


def draws_of(
    model: nn.Module, inputs: Samples, outputs: Tensor, states: Sequence[Tensor]
) -> Draws | None:
    """Return what a pass drew, by running it once more; None if it did not draw.

    Args:
        model: in eval mode.
        inputs: of the pass.
        outputs: of the pass.
        states: of the random numbers before it; see ``random_states``.

    Raises:
        DrawsError: if its outputs are others now.
    """
    if same_states(states, random_states(inputs.device)):
        return None
    draws = Draws(len(inputs), states, inputs.device)
    with torch.no_grad(), buffers_kept(model), random_states_kept(inputs.device):
        set_random_states(states, inputs.device)
        with draws.recording():
            again = inputs.outputs(model)
    if not close(again, outputs.detach()):
        raise DrawsError
    return draws if len(draws) else None

"""Synchronous SGD in virtual time, to set LASGD beside."""

import math
import random

from fedcurv.lasgd.virtual.lengths import Lengths
from fedcurv.lasgd.virtual.link import Link
from fedcurv.lasgd.virtual.outcome import Landing, Outcome, require_end, share_of_speeds
from fedcurv.lasgd.virtual.problem import Problem


def synchronous(
    problem: Problem,
    workers: int,
    lengths: Lengths,
    link: Link | None = None,
    *,
    seconds: float = math.inf,
    loss: float = -math.inf,
    hidden: float = 2 / 3,
    seed: int = 0,
) -> Outcome:
    """Train one model with the mean of the workers' gradients, each step as long as the slowest's.

    Args:
        problem: that all train.
        workers: N >= 1.
        lengths: of the steps.
        link: between the workers.
        seconds: of virtual time, after which it ends.
        loss: at which it ends before.
        hidden: the share of a step, its backward pass, beside which gradients travel.
        seed: of the batches' order and of what is random in the lengths.

    Raises:
        ValueError: if there is neither an end nor a loss to train to, or no worker.
    """
    require_end(seconds, loss)
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be an integer >= 1, got {workers!r}")
    link, batches = link or Link(), problem.batches(seed)
    model = problem.make_model()
    optimizer = problem.make_optimizer(model)
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    draws = [random.Random(1_000_003 * seed + worker) for worker in range(workers)]
    spans: list[list[tuple[float, float]]] = [[] for _ in range(workers)]
    landings: list[Landing] = []
    now, samples = 0.0, 0
    while True:
        own = [lengths(worker, now, draws[worker]) for worker in range(workers)]
        exposed = max(0.0, link.all_reduce(num_bytes, workers) - hidden * max(own))
        then = now + max(own) + exposed
        if then > seconds:
            break
        optimizer.zero_grad()
        for worker, length in enumerate(own):
            inputs, targets = next(batches)
            spans[worker].append((now, now + length))
            samples += len(targets)
            (problem.loss(model(inputs), targets) / workers).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        now = then
        landings.append(Landing(now, workers * (len(landings) + 1), problem.test_loss(model)))
        if landings[-1].loss <= loss:
            break
    ended = min(seconds, now) if now else seconds
    steps = [len(one) for one in spans]
    return Outcome(
        seconds=ended,
        steps=sum(steps),
        samples=samples,
        share=share_of_speeds(steps, spans, [ended] * workers),
        landings=landings,
        steps_in_flight=0.0,
        spans=spans,
        payload_bytes=num_bytes * len(landings),
        model={name: value.detach().clone() for name, value in model.state_dict().items()},
    )

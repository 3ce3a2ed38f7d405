"""LASGD in virtual time, in numpy: what happens when is found by looking at every next moment.

The model is one vector w, the loss of a sample a is ½‖w − a‖², a step is one of plain SGD on one
sample. Nothing is shared with the project's own clock, and models are kept by the ledger.
"""

import numpy as np

from tests.oracles.lasgd import Ledger


def run(
    start, samples, lengths, *, lr, sync_every, link, notice, until, weights="gradient", outer=None
):
    """Return (when, steps) of every landing, the common model, and each worker's steps.

    Args:
        start: the first model.
        samples: what each step takes, in the order in which steps begin.
        lengths: of each worker's steps, as many as are needed.
        lr: of SGD.
        sync_every: steps of all between rounds.
        link: how long a sum takes.
        notice: from the step that opens a round to the snapshots.
        until: the end.
        weights: of the ledger.
        outer: of the ledger.
    """
    number = len(lengths)
    ledger, samples = Ledger(start, number, outer), list(samples)
    taken = [samples.pop(0) for _ in range(number)]
    ends = [lengths[w][0] for w in range(number)]
    made = [0] * number
    seen = [ledger.model(w) for w in range(number)]  # what each trains on, changed between steps
    opens = lands = np.inf
    landed, landings = 0, []
    while True:
        now = min(*ends, opens, lands)
        if now > until:
            return landings, ledger.anchor, made
        if now == opens:
            ledger.snapshot()
            opens, lands = np.inf, now + link
        elif now == lands:
            landed += sum(w.taken - w.landed for w in ledger.workers)
            ledger.land(weights)
            landings.append((now, landed))
            lands = np.inf
        else:
            w = ends.index(now)
            ledger.step(w, -lr * (seen[w] - taken[w]))
            made[w] += 1
            seen[w] = ledger.model(w)
            if sum(made) - landed >= sync_every and opens == lands == np.inf:
                opens = now + notice
            taken[w] = samples.pop(0)
            ends[w] = now + lengths[w][made[w]]

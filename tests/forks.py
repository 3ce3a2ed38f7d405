"""Processes that have imported this project from their first moment: forks of one that has."""

import multiprocessing
from multiprocessing.context import ForkServerContext

# the last is what torch loads with the first optimizer, for seconds
_PRELOADED = ["fedcurv.lasgd", "fedcurv.simulations.commands.simulate", "torch._dynamo"]


def forks() -> ForkServerContext:
    """Return what makes processes out of one that trains nothing and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context

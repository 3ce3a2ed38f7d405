"""LASGD in virtual time: its own arithmetic, with as many workers as are asked for, in one process.

Steps take as long as they are said to, and no time passes while they are computed. So a site's
settings can be chosen before there is one, for more workers than a machine has cores.
"""

from fedcurv.lasgd.outer import Outer
from fedcurv.lasgd.virtual.lengths import (
    Lengths,
    equal,
    heavy_tailed,
    lognormal,
    recorded,
    rotating,
    straggler,
)
from fedcurv.lasgd.virtual.link import Link
from fedcurv.lasgd.virtual.outcome import Landing, Outcome, Plan
from fedcurv.lasgd.virtual.problem import Problem, taught
from fedcurv.lasgd.virtual.site import Site
from fedcurv.lasgd.virtual.synchronous import synchronous

__all__ = [
    "Landing",
    "Lengths",
    "Link",
    "Outcome",
    "Outer",
    "Plan",
    "Problem",
    "Site",
    "equal",
    "heavy_tailed",
    "lognormal",
    "recorded",
    "rotating",
    "straggler",
    "synchronous",
    "taught",
]

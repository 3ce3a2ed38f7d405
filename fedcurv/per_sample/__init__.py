"""Squared gradients of single samples, summed over a batch, for the cost of about one pass."""

from fedcurv.per_sample import rules
from fedcurv.per_sample.check import SelfCheck, unchecked
from fedcurv.per_sample.findings import Findings
from fedcurv.per_sample.memory import samples_at_once, samples_worth_a_pass
from fedcurv.per_sample.rules.registry import LayerRule, register_rule
from fedcurv.per_sample.samples import Samples
from fedcurv.per_sample.sharing import refuse_accidental_rows
from fedcurv.per_sample.squares import PerSampleSquares
from fedcurv.per_sample.surroundings import undisturbed

__all__ = [
    "Findings",
    "LayerRule",
    "PerSampleSquares",
    "Samples",
    "SelfCheck",
    "refuse_accidental_rows",
    "register_rule",
    "rules",
    "samples_at_once",
    "samples_worth_a_pass",
    "unchecked",
    "undisturbed",
]

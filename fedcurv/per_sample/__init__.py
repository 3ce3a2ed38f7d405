"""Squared gradients of single samples, summed over a batch, for the cost of about one pass."""

from fedcurv.per_sample.check import findings_of, unchecked
from fedcurv.per_sample.memory import samples_at_once
from fedcurv.per_sample.squares import PerSampleSquares

__all__ = ["PerSampleSquares", "findings_of", "samples_at_once", "unchecked"]

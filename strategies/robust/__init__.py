"""Sums that no single client decides: by the wrapped strategy's rule, or by a bound on each."""

"""Experiments: data, partitions, models, runners and the command ``fedcurv-simulate``."""

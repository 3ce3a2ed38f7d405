"""Experiments: trainings that are planned, run once, and put into one table."""

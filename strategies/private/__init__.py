"""Differential privacy of what FedCurv adds to a strategy that has it for the model."""

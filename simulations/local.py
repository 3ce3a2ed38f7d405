"""A ServerApp and a ClientApp in this process: the name that users import."""

from fedcurv.simulations.runners.local import LocalGrid, run_local, run_on

__all__ = ["LocalGrid", "run_local", "run_on"]

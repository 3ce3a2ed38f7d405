"""The components that Flower looks for in the app's own folder."""

from fedcurv.simulations.client import app as client_app
from fedcurv.simulations.deployed import app as server_app

__all__ = ["client_app", "server_app"]

"""What Flower looks for in the app's own folder on the SuperLink."""

from fedcurv.simulations.deployment.server_app import app

__all__ = ["app"]

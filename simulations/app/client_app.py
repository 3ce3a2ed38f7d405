"""What Flower looks for in the app's own folder on a SuperNode; it loads nothing of the server."""

from fedcurv.simulations.federation.client_app import app

__all__ = ["app"]

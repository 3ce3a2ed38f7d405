"""FedCurv: federated learning on non-IID data with Fisher information, in plain PyTorch.

The mathematics lives here and needs torch alone. ``fedcurv.strategies`` and ``fedcurv.clients`` put
it into Flower, ``fedcurv.simulations`` runs experiments.
"""

from fedcurv.curvature import Curvature
from fedcurv.fisher import fisher_diagonal
from fedcurv.penalty import CurvaturePenalty

__all__ = ["Curvature", "CurvaturePenalty", "fisher_diagonal"]


def __getattr__(name: str) -> str:
    """Return ``__version__``, of the installed package, once it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # reading a package's metadata takes longer than most imports here
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        raise AttributeError(
            f"{__name__} has no __version__, since it is not installed; pip install it"
        ) from None

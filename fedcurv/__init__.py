"""FedCurv: federated learning on non-IID data with Fisher information, in plain PyTorch.

The mathematics lives here and needs torch alone. ``fedcurv.strategies`` and ``fedcurv.clients`` put
it into Flower, ``fedcurv.simulations`` runs experiments.
"""

from fedcurv.curvature import Curvature
from fedcurv.fisher import fisher_diagonal
from fedcurv.penalty import CurvaturePenalty

__all__ = ["Curvature", "CurvaturePenalty", "fisher_diagonal"]

"""FedCurv by its definition: every node's quadratic kept apart, no sums."""

import torch


class NodeTerm:
    """(θ − θ̂_j)ᵀ diag(F_j) (θ − θ̂_j) of one node."""

    def __init__(self, fisher: torch.Tensor, solution: torch.Tensor) -> None:
        self.fisher = fisher.double()
        self.solution = solution.double()

    def __call__(self, theta: torch.Tensor) -> torch.Tensor:
        difference = theta.double() - self.solution
        return difference @ torch.diag(self.fisher) @ difference


def penalty(theta: torch.Tensor, terms: list[NodeTerm], strength: float) -> torch.Tensor:
    nothing = 0 * theta.double().sum()
    return strength * sum((term(theta) for term in terms), nothing)


def gradient(theta: torch.Tensor, terms: list[NodeTerm], strength: float) -> torch.Tensor:
    theta = theta.detach().double().requires_grad_()
    (result,) = torch.autograd.grad(penalty(theta, terms, strength), theta)
    return result


def smallest_penalty(terms: list[NodeTerm], strength: float) -> torch.Tensor:
    """The minimum over θ, coordinate by coordinate: a weighted variance."""
    fishers = torch.stack([t.fisher for t in terms])
    solutions = torch.stack([t.solution for t in terms])
    total = fishers.sum(0)
    centre = (fishers * solutions).sum(0) / torch.where(total > 0, total, 1)
    return strength * (fishers * (solutions - centre) ** 2).sum()

"""FedCurv on softmax regression, written out: every node's term kept apart, nothing on a wire."""

import torch
from torch import nn

from tests.oracles import fisher


def local_training(start, inputs, targets, terms, *, strength, steps, lr):
    """Gradient descent on the loss plus Σ_j F_j (θ − θ̂_j)², everything in float64."""
    model = nn.Linear(inputs.shape[1], len(start["bias"])).double()
    model.load_state_dict(start)
    for _ in range(steps):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs.double()), targets)
        for fisher_j, solution_j in terms:
            for name, theta in model.named_parameters():
                loss = loss + strength * (fisher_j[name] * (theta - solution_j[name]) ** 2).sum()
        loss.backward()
        with torch.no_grad():
            for theta in model.parameters():
                theta -= lr * theta.grad
    solution = {name: theta.detach().clone() for name, theta in model.named_parameters()}
    return solution, fisher.empirical(model, inputs.double(), targets)


def run(start, data, *, strength, num_rounds, steps, lr, participants=None):
    """Return the averaged model after each round.

    ``participants``: by round, the nodes that train; by default all in all rounds.
    """
    theta = {name: tensor.double() for name, tensor in start.items()}
    terms: dict[int, tuple] = {}
    history = []
    for server_round in range(1, num_rounds + 1):
        nodes = participants[server_round] if participants else range(len(data))
        results = {
            node: local_training(
                theta,
                *data[node],
                [term for other, term in terms.items() if other != node],
                strength=strength,
                steps=steps,
                lr=lr,
            )
            for node in nodes
        }
        weights = {node: len(data[node][0]) for node in results}
        theta = {
            name: sum(weights[node] * solution[name] for node, (solution, _) in results.items())
            / sum(weights.values())
            for name in theta
        }
        terms = {node: (fisher_j, solution) for node, (solution, fisher_j) in results.items()}
        history.append(theta)
    return history

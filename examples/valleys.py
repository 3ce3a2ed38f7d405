"""Two clients whose losses are valleys in different directions: where averaging ends, and FedCurv.

Each client knows one of two parameters well and the other hardly. The mean of the two solutions is
good for nobody; with the Fisher information both learn from whoever knows.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from fedcurv import Curvature, CurvaturePenalty, fisher_diagonal

ROUNDS = 6
SOLUTIONS = torch.tensor([[2.0, 3.0], [-2.0, -1.0]])  # of each client alone
SPREADS = torch.tensor([[2.0, 0.3], [0.3, 2.0]])  # of its two inputs: how well it knows a parameter
inputs = torch.randn(2, 200, 2, generator=torch.Generator().manual_seed(0)) * SPREADS[:, None]
targets = inputs @ SOLUTIONS[:, :, None]
likelihood = nn.MSELoss()


def loss_of(client: int, weights: torch.Tensor) -> torch.Tensor:
    """Return half of a client's mean squared error, for weights (..., 2)."""
    errors = inputs[client] @ weights[..., None] - targets[client]
    return errors.square().mean((-2, -1)) / 2


def trained(client: int, start: torch.Tensor, others: Curvature | None) -> nn.Linear:
    """Return the client's model after many steps, under the others' pull if there is one."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    if others is not None:
        CurvaturePenalty(model, others, strength=0.5).attach(optimizer, mode="proximal")
    for _ in range(200):
        optimizer.zero_grad()
        loss_of(client, model.weight[0]).backward()
        optimizer.step()
    return model


def path_of(with_curvature: bool) -> torch.Tensor:
    """Return the averaged weights after every round, shape (ROUNDS + 1, 2)."""
    path, sent = [torch.zeros(2)], [None, None]
    for _ in range(ROUNDS):
        others = [None, None] if not with_curvature or sent[0] is None else sent[::-1]
        models = [trained(client, path[-1], others[client]) for client in range(2)]
        sent = [
            Curvature.at(
                model,
                fisher_diagonal(
                    model, [(inputs[client], targets[client])], kind="exact", likelihood=likelihood
                ),
            )
            for client, model in enumerate(models)
        ]
        path.append(sum(model.weight.detach()[0] for model in models) / 2)
    return torch.stack(path)


paths = {"FedAvg": path_of(False), "FedCurv": path_of(True)}
for name, path in paths.items():
    both = sum(loss_of(client, path[-1]) for client in range(2))
    print(f"{name}: loss of both clients {both:.1f} at {path[-1].round().int().tolist()}")

grid = torch.stack(torch.meshgrid(*2 * [torch.linspace(-4, 5, 90)], indexing="xy"), -1)
figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
for client, color in enumerate(("tab:blue", "tab:orange")):
    axes.contour(*grid.unbind(-1), loss_of(client, grid), [0.5, 2, 5], colors=color, alpha=0.5)
    axes.plot(*SOLUTIONS[client], "*", color=color, label=f"client {client + 1} alone")
for (name, path), color in zip(paths.items(), ("tab:red", "tab:green"), strict=True):
    axes.plot(*path.T, "o-", color=color, label=name, alpha=0.7)
axes.legend()
figure.savefig("valleys.png", dpi=110)

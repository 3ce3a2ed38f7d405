"""Which pixels matter to which client, and what two other kinds of Fisher information give.

Five clients have two classes of digits each. Each trains a model of its own, and its Fisher
information says which of the 64 pixels its loss depends on.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

from fedcurv import fisher_diagonal

images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images = images.float() / 16


def trained(rows: torch.Tensor) -> nn.Module:
    """Return a model that has learned these rows' digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for some in 3 * rows.split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[some]), labels[some]).backward()
        optimizer.step()
    return model


figure, axes = plt.subplots(1, 5, figsize=(10, 2.4), layout="constrained")
for client, axis in enumerate(axes):
    rows = (labels // 2 == client).nonzero().squeeze(1)
    model = trained(rows)
    batches = [(images[rows], labels[rows])]
    exact = fisher_diagonal(model, batches, kind="exact")
    axis.imshow(exact["0.weight"].sum(0).view(8, 8).numpy())
    axis.set(title=f"digits {2 * client} and {2 * client + 1}", xticks=[], yticks=[])
figure.savefig("which_pixels.png", dpi=110)

flat = torch.cat([values.flatten() for values in exact.values()])
for kind in ("signed", "empirical"):
    torch.manual_seed(0)
    other = fisher_diagonal(model, batches, kind=kind)
    other = torch.cat([values.flatten() for values in other.values()])
    off = (other - flat).norm() / flat.norm()
    print(f"{kind}: {'nearer than' if off < 0.2 else 'farther than'} a fifth of exact")

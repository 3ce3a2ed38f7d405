"""Model, data and training."""

import torch
from opacus import PrivacyEngine
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x)))


def load_data(partition_id: int, num_partitions: int) -> DataLoader:
    pixels, labels = load_digits(return_X_y=True)
    mine = labels * num_partitions // 10 == partition_id
    x = torch.tensor(pixels[mine], dtype=torch.float32) / 16
    return DataLoader(TensorDataset(x, torch.tensor(labels[mine])), batch_size=32)


def train(net, trainloader, privacy: PrivacyEngine, config) -> float:
    """Train by DP-SGD; the engine's accountant counts the steps."""
    private_net, optimizer, private_loader = privacy.make_private(
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=config["learning-rate"]),
        data_loader=trainloader,
        noise_multiplier=config["noise-multiplier"],
        max_grad_norm=config["max-grad-norm"],
    )
    private_net.train()
    losses = []
    for _ in range(config["local-epochs"]):
        for images, labels in private_loader:
            loss = nn.functional.cross_entropy(private_net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)

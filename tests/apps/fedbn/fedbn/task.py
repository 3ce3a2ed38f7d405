"""Model, data and training."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.hidden, self.bn2 = nn.Linear(8 * 4 * 4, 32), nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv(x))), 2)
        return self.head(torch.relu(self.bn2(self.hidden(x.flatten(1)))))


def of_batch_norm(state_dict, yes: bool):
    return {name: value for name, value in state_dict.items() if ("bn" in name) == yes}


def load_data(partition_id: int, num_partitions: int) -> DataLoader:
    """Return every third scan or so, each client's in a brightness of its own."""
    pixels, labels = load_digits(return_X_y=True)
    mine = slice(partition_id, 600, num_partitions)
    x = torch.tensor(pixels[mine], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = TensorDataset(x * (1 + partition_id), torch.tensor(labels[mine]))
    return DataLoader(data, batch_size=20)


def train(net: nn.Module, trainloader: DataLoader, epochs: int, lr: float) -> float:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    net.train()
    losses = []
    for _ in range(epochs):
        for images, labels in trainloader:
            loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)

"""Model, data and training."""

import torch
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


def train(net: nn.Module, trainloader: DataLoader, momentum: dict) -> float:
    """Train, beginning with the momentum of this client's last round, which is updated."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for name, parameter in net.named_parameters():
        if name in momentum:
            optimizer.state[parameter]["momentum_buffer"] = momentum[name]
    net.train()
    losses = []
    for images, labels in trainloader:
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for name, parameter in net.named_parameters():
        momentum[name] = optimizer.state[parameter]["momentum_buffer"]
    return sum(losses) / len(losses)

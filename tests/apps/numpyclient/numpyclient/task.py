"""The legacy client, with its model and data."""

import torch
from flwr.client import NumPyClient
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def new_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def get_weights(net: nn.Module) -> list:
    return [value.numpy() for value in net.state_dict().values()]


def load_data(partition_id: int, num_partitions: int) -> DataLoader:
    pixels, labels = load_digits(return_X_y=True)
    mine = labels * num_partitions // 10 == partition_id
    x = torch.tensor(pixels[mine], dtype=torch.float32) / 16
    return DataLoader(TensorDataset(x, torch.tensor(labels[mine])), batch_size=32)


class DigitsClient(NumPyClient):
    def __init__(self, partition_id: int, num_partitions: int, epochs: int) -> None:
        self.net, self.epochs = new_model(), epochs
        self.loader = load_data(partition_id, num_partitions)

    def fit(self, parameters, config):
        names = self.net.state_dict()
        self.net.load_state_dict(dict(zip(names, map(torch.tensor, parameters), strict=True)))
        optimizer = torch.optim.SGD(self.net.parameters(), lr=config["lr"])
        losses = []
        for _ in range(self.epochs):
            for images, labels in self.loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.net(images), labels)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        metrics = {"train_loss": sum(losses) / len(losses)}
        return get_weights(self.net), len(self.loader.dataset), metrics

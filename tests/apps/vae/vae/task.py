"""Model, data and training."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(64, 6), nn.Linear(64, 6)
        self.decoder = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(code), mean, log_variance


class Digits(Dataset):
    def __init__(self, partition_id: int, num_partitions: int) -> None:
        pixels, labels = load_digits(return_X_y=True)
        mine = labels * num_partitions // 10 == partition_id
        self.images = torch.tensor(pixels[mine], dtype=torch.float32) / 16

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return {"image": self.images[index]}


def load_data(partition_id: int, num_partitions: int) -> DataLoader:
    return DataLoader(Digits(partition_id, num_partitions), batch_size=32)


def train(net: nn.Module, trainloader: DataLoader, epochs: int, lr: float) -> float:
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    net.train()
    losses = []
    for _ in range(epochs):
        for batch in trainloader:
            images = batch["image"]
            decoded, mean, log_variance = net(images)
            errors = 0.5 * (decoded - images).square().sum(1)
            divergences = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
            loss = (errors + divergences).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)

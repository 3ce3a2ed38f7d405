"""Model, data, training and testing."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.hidden = nn.Linear(16 * 4 * 4, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Scans(Dataset):
    """Every fifth scan is for testing; a partition has the digits of two classes of the rest."""

    def __init__(self, indices: torch.Tensor) -> None:
        pixels, labels = load_digits(return_X_y=True)
        self.images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)[indices] / 16
        self.labels = torch.tensor(labels)[indices]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.images[index], "label": self.labels[index]}


def load_data(partition_id: int, num_partitions: int, batch_size: int):
    labels = torch.tensor(load_digits().target)
    mine = (labels * num_partitions // 10 == partition_id) & (torch.arange(len(labels)) % 5 > 0)
    indices = mine.nonzero().flatten()
    held_out = len(indices) // 5
    order = torch.Generator().manual_seed(partition_id)
    trainset, testset = Scans(indices[held_out:]), Scans(indices[:held_out])
    return (
        DataLoader(trainset, batch_size=batch_size, shuffle=True, generator=order),
        DataLoader(testset, batch_size=batch_size),
    )


def load_central_test_set() -> DataLoader:
    return DataLoader(Scans(torch.arange(0, 1797, 5)), batch_size=128)


def train(net: nn.Module, trainloader: DataLoader, epochs: int, lr: float, device) -> float:
    net.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            optimizer.zero_grad()
            loss = criterion(net(batch["image"].to(device)), batch["label"].to(device))
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net: nn.Module, testloader: DataLoader, device) -> tuple[float, float]:
    net.to(device)
    net.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for batch in testloader:
            images, labels = batch["image"].to(device), batch["label"].to(device)
            outputs = net(images)
            loss += nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
            correct += (outputs.argmax(1) == labels).sum().item()
    return loss / len(testloader.dataset), correct / len(testloader.dataset)

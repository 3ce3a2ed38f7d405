"""Model, data and training. The pictures are made up: boxes and discs, with a rim of no class."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES, SIDE, VOID = 3, 12, 255


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Conv2d(9, CLASSES, 1)

    def forward(self, x):
        hidden = torch.relu(self.middle(torch.relu(self.down(x))))
        return self.head(torch.cat([torch.relu(self.up(hidden)), x], 1))


def load_data(partition_id: int, number: int = 32) -> DataLoader:
    """Return pictures with a box, or a disc at a third of the clients, and their masks."""
    generator = torch.Generator().manual_seed(partition_id)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centre = torch.randint(3, SIDE - 3, (number, 2, 1, 1), generator=generator)
    away = torch.stack([(rows - centre[:, 0]).abs(), (columns - centre[:, 1]).abs()])
    is_disc = partition_id % 3 == 0
    distance = away.square().sum(0).float().sqrt() if is_disc else away.amax(0).float()
    masks = torch.where(distance < 2.5, 1 + is_disc, 0)
    masks[(distance - 3).abs() < 0.5] = VOID
    noise = torch.randn((number, 1, SIDE, SIDE), generator=generator)
    images = (distance < 2.5).float().unsqueeze(1) + 0.3 * noise
    return DataLoader(TensorDataset(images, masks), batch_size=8)


def train(net: nn.Module, trainloader: DataLoader, criterion, epochs: int, lr: float) -> float:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    losses = []
    for _ in range(epochs):
        for images, masks in trainloader:
            loss = criterion(net(images), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)

"""Module and data."""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class LitDigits(L.LightningModule):
    """What others use is the code, so that is what the module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, x):
        return self.encoder(x)

    def reconstruct(self, batch):
        x, _ = batch
        return self.decoder(self.encoder(x))

    def training_step(self, batch, batch_idx):
        x, _ = batch
        loss = nn.functional.mse_loss(self.reconstruct(batch), x)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.002)


def load_data(partition_id: int, num_partitions: int) -> DataLoader:
    pixels, labels = load_digits(return_X_y=True)
    mine = labels * num_partitions // 10 == partition_id
    x = torch.tensor(pixels[mine], dtype=torch.float32) / 16
    return DataLoader(TensorDataset(x, torch.tensor(labels[mine])), batch_size=32)

"""The models that costs are measured on."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from fedcurv.simulations.parts.models import cnn, mlp, resnet18

MNIST, CIFAR, CLASSES = (1, 28, 28), (3, 32, 32), 10

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A model, data for it, and what the Fisher information over them should cost at most.

    Attributes:
        make: builds the model.
        shape: of a picture, or of a text.
        samples: how many.
        batch_size: of training and of the estimate.
        target: in training epochs.
        memory_target: in the peak memory of a training step.
        rounds: how often to measure.
        characters: how many different ones texts are made of; 0 for pictures.
        padded: whether half of the texts end with the character 0.
        targets: of pictures: "class", "class of each pixel", or "picture" where the model is to
            return what it was given.
        vmap_runs: whether torch.func.vmap can run the model on single samples.
        needs: the package that the model is of.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    samples: int
    batch_size: int
    target: float
    memory_target: float = 1.3
    rounds: int = 9
    characters: int = 0
    padded: bool = False
    targets: str = "class"
    vmap_runs: bool = True
    needs: str = "torch"

    @property
    def likelihood(self) -> str:
        return "gaussian" if self.targets == "picture" else "categorical"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.targets == "picture":
            return nn.functional.mse_loss(outputs, targets)
        return nn.functional.cross_entropy(outputs, targets)

    def batches(self, device: torch.device) -> Batches:
        generator = torch.Generator().manual_seed(0)
        size = (self.samples, *self.shape)
        if self.characters:
            inputs = torch.randint(1, self.characters, size, generator=generator).to(device)
        else:
            inputs = torch.randn(size, generator=generator).to(device)
        if self.padded:
            inputs[::2, self.shape[0] // 2 :] = 0
        of_pixels = self.shape[1:] if self.targets == "class of each pixel" else ()
        targets = torch.randint(0, CLASSES, (self.samples, *of_pixels), generator=generator)
        targets = inputs if self.targets == "picture" else targets.to(device)
        pairs = zip(inputs.split(self.batch_size), targets.split(self.batch_size), strict=True)
        return list(pairs)


def small_cnn() -> nn.Module:
    return cnn(MNIST, CLASSES, padding=0)


class TwoLstms(nn.Module):
    """The character that follows, by two layers of 128."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(80, 8)
        self.lstm, self.head = nn.LSTM(8, 128, 2, batch_first=True), nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.characters(x))
        logits: Tensor = self.head(outputs[:, -1])
        return logits


def encoder(width: int) -> nn.TransformerEncoder:
    """Return four layers without dropout, which would be another computation in training."""
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 4)


class TextEncoder(nn.Module):
    """Four layers of attention over 64 characters."""

    def __init__(self) -> None:
        super().__init__()
        self.characters, self.encoder = nn.Embedding(80, 128), encoder(128)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.characters(x)).mean(1))
        return logits


class VisionTransformer(nn.Module):
    """Patches of 4 by 4; the class token and the positions are parameters of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.encoder = nn.Conv2d(3, 96, 4, 4), encoder(96)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, 96))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 65, 96))
        self.head = nn.Linear(96, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        with_token = torch.cat([self.token.expand(len(x), -1, -1), patches], 1)
        logits: Tensor = self.head(self.encoder(with_token + self.positions)[:, 0])
        return logits


class VariationalAutoencoder(nn.Module):
    """Draws its code in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(256, 16), nn.Linear(256, 16)
        self.decoder = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 784))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        picture: Tensor = self.decoder(code)
        return picture.view_as(x)


class UNet(nn.Module):
    """Two steps down, and up again by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = _twice(3, 16), _twice(16, 32), _twice(32, 64)
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)]
        )
        self.beside = nn.ModuleList([_twice(64, 32), _twice(32, 16)])
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(nn.functional.max_pool2d(first, 2))
        x = self.third(nn.functional.max_pool2d(second, 2))
        for up, beside, skipped in zip(self.up, self.beside, (second, first), strict=True):
            x = beside(torch.cat([up(x), skipped], 1))
        logits: Tensor = self.head(x)
        return logits


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


class Bert(nn.Module):
    """Four layers of Hugging Face's BERT, without dropout; the character 0 is masked."""

    def __init__(self) -> None:
        super().__init__()
        transformers = importlib.import_module("transformers")
        config = transformers.BertConfig(
            vocab_size=80,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=64,
            num_labels=CLASSES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = transformers.BertForSequenceClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.bert(input_ids=x, attention_mask=(x > 0).long()).logits
        return logits


def batch_norm_resnet18() -> nn.Module:
    model: nn.Module = torchvision.models.resnet18(num_classes=CLASSES)
    model.conv1 = nn.Conv2d(CIFAR[0], 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


CASES = {
    "MLP 784-200-200-10": Case(lambda: mlp(MNIST, CLASSES), MNIST, 600, 32, 1.05, rounds=25),
    "CNN, 582 thousand": Case(small_cnn, MNIST, 600, 32, 1.2),
    "CNN, 1.66 million": Case(lambda: cnn(MNIST, CLASSES), MNIST, 600, 32, 1.2),
    "ResNet-18, GroupNorm": Case(
        lambda: resnet18(CIFAR, CLASSES), CIFAR, 200, 50, 1.15, memory_target=1.6, rounds=5
    ),
    "ResNet-18, BatchNorm in eval": Case(
        batch_norm_resnet18, CIFAR, 200, 50, 1.15, memory_target=1.6, rounds=5
    ),
    "LSTM 2x128, 80 characters": Case(
        TwoLstms, (80,), 600, 32, 2.0, rounds=5, characters=80, vmap_runs=False
    ),
    "transformer encoder": Case(TextEncoder, (64,), 200, 32, 1.4, rounds=5, characters=80),
    "vision transformer": Case(VisionTransformer, CIFAR, 200, 32, 1.4, rounds=5),
    "variational autoencoder": Case(
        VariationalAutoencoder, MNIST, 600, 32, 1.6, targets="picture", vmap_runs=False
    ),
    "BERT of 4 layers": Case(
        Bert, (64,), 200, 32, 1.6, rounds=5, characters=80, vmap_runs=False, needs="transformers"
    ),
    "BERT of 4 layers, half padded": Case(
        Bert,
        (64,),
        200,
        32,
        1.6,
        rounds=5,
        characters=80,
        padded=True,
        vmap_runs=False,
        needs="transformers",
    ),
    "U-Net": Case(UNet, CIFAR, 200, 32, 1.2, rounds=5, targets="class of each pixel"),
}

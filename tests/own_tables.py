"""Functions that a configuration names in the place of the project's own things."""

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn


def rows() -> dict[str, np.ndarray]:
    """Return rows of five numbers of three classes, the largest of the first three."""
    rng = np.random.default_rng(0)
    made = {}
    for part, number in (("train", 60), ("test", 30)):
        inputs = rng.normal(size=(number, 5))
        made |= {f"{part}_inputs": inputs, f"{part}_targets": inputs[:, :3].argmax(1)}
    return made


def text() -> dict[str, np.ndarray]:
    """Return tokens of 20 writers, and the token that follows."""
    tokens = np.random.default_rng(0).integers(0, 9, (80, 12))
    made = {
        "train_inputs": tokens,
        "train_targets": tokens[:, -1],
        "train_groups": np.arange(80) % 20,
    }
    return made | {"test_inputs": tokens[:9], "test_targets": tokens[:9, -1]}


def network(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a linear classifier."""
    return nn.Linear(shape[0], num_classes)


def probabilities(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a classifier that ends with a softmax, which logits do not."""
    return nn.Sequential(nn.Linear(shape[0], num_classes), nn.Softmax(1))


def by_turns(labels: np.ndarray, num_clients: int, *, seed: int) -> list[np.ndarray]:
    """Return every so manieth sample for each client."""
    return [np.arange(i, len(labels), num_clients) for i in range(num_clients)]


def no_term(message: object, context: object, model: nn.Module) -> None:
    """Return no local term."""


def numbers(columns: int = 2, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return rows of five numbers, and numbers that follow from them, nearly in a straight line."""
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=(5, columns))
    made = {}
    for part, number in (("train", 60), ("test", 30)):
        inputs = rng.normal(size=(number, 5))
        targets = inputs @ slopes + 0.1 * rng.normal(size=(number, columns))
        made |= {f"{part}_inputs": inputs, f"{part}_targets": scale * targets}
    return made


def signs(columns: int = 1) -> dict[str, np.ndarray]:
    """Return rows of five numbers, and for each column whether its number is above 0."""
    made = numbers(max(1, columns))
    for part in ("train", "test"):
        made[f"{part}_targets"] = made[f"{part}_targets"] > 0
    if columns == 1:
        made |= {name: made[name][:, 0] for name in ("train_targets", "test_targets")}
    return made


def positions() -> dict[str, np.ndarray]:
    """Return rows of seven tokens of four, and for each the same token, but for some unknown."""
    rng = np.random.default_rng(0)
    made = {}
    for part, number in (("train", 60), ("test", 30)):
        tokens = rng.integers(0, 4, (number, 7))
        targets = np.where(rng.random(tokens.shape) < 0.3, -100, tokens)
        made |= {f"{part}_inputs": tokens, f"{part}_targets": targets}
    return made


class Tagger(nn.Module):
    """Gives logits for every position of a row of tokens, the classes second or last."""

    def __init__(self, classes: int, *, last: bool) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(4, 6), nn.Linear(6, classes)
        self.last = last

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (N, T, C), or (N, C, T)."""
        logits = self.output(self.embedding(tokens))
        return logits if self.last else logits.movedim(-1, 1)


def tagger(shape: tuple[int, ...], classes: int, last: bool = True) -> nn.Module:
    """Return a model that classifies each token by itself."""
    return Tagger(classes, last=last)


def mean_error(outputs: Tensor, targets: Tensor) -> float:
    """Return the mean absolute error."""
    return float((outputs - targets).abs().mean())


def not_defined(outputs: Tensor, targets: Tensor) -> float:
    """Return no number."""
    return float("nan")


def no_number(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return several numbers."""
    return outputs


def in_words(outputs: Tensor, targets: Tensor) -> str:
    """Return a number's text."""
    return "0.3"


def loss(outputs: Tensor, targets: Tensor) -> float:
    """Return a number under a name that is taken."""
    return 0.0


class FailsInRoundTwo(FedAvg):
    """Averages once."""

    def aggregate_train(self, server_round, replies):
        """Return the mean, in round 1."""
        if server_round == 2:
            raise KeyError("momentum")
        return super().aggregate_train(server_round, replies)


class NamesATerm(FedAvg):
    """Asks the clients for the local term ``mine``."""

    def configure_train(self, server_round, arrays, config, grid):
        """Name the term in every message."""
        config = ConfigRecord({**config, "local-term": "mine"})
        return super().configure_train(server_round, arrays, config, grid)

    def configure_evaluate(self, *_):
        """Ask nobody."""
        return []


def first_right(outputs: Tensor, targets: Tensor) -> float:
    """Return whether the first prediction is right."""
    return float(outputs[0].argmax() == targets[0])

"""Models of rows of tokens."""

import torch
from torch import Tensor, nn

from fedcurv.simulations.parts.models.registry import Shape, register_model


@register_model("lstm")
def lstm(
    shape: Shape,
    num_classes: int,
    *,
    embedding: int = 8,
    width: int = 256,
    layers: int = 2,
    every_position: bool = False,
) -> nn.Module:
    """Return an LSTM over tokens that predicts the one after them, from as many as there are.

    Args:
        shape: the number of tokens of an input, each from 0 to ``num_classes - 1``.
        num_classes: how many different tokens there are.
        embedding: numbers for a token.
        width: of a layer.
        layers: how many of them.
        every_position: give logits for the token after each one, (N, T, C), not after all of them.
    """
    _require_tokens("lstm", shape)
    return _TokenLSTM(num_classes, embedding, width, layers, every_position)


@register_model("transformer")
def transformer(
    shape: Shape,
    num_classes: int,
    *,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    every_position: bool = False,
) -> nn.Module:
    """Return a transformer over tokens that predicts the one after them, from as many as there are.

    Layer normalisation comes first in each layer, and there is no dropout.

    Args:
        shape: the number of tokens of an input, each from 0 to ``num_classes - 1``.
        num_classes: how many different tokens there are.
        width: numbers for a token, a multiple of ``heads``.
        heads: of a layer's attention.
        layers: how many of them.
        every_position: give logits for the token after each one, (N, T, C), from what is before it;
            not after all of them.
    """
    _require_tokens("transformer", shape)
    return _TokenTransformer(num_classes, shape[0], width, heads, layers, every_position)


class _TokenLSTM(nn.Module):
    def __init__(
        self, tokens: int, embedding: int, width: int, layers: int, every_position: bool
    ) -> None:
        super().__init__()
        self.every_position = every_position
        self.embedding = nn.Embedding(tokens, embedding)
        self.lstm = nn.LSTM(embedding, width, layers, batch_first=True)
        self.output = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.output(states if self.every_position else states[:, -1])
        return logits


class _TokenTransformer(nn.Module):
    def __init__(
        self, tokens: int, length: int, width: int, heads: int, layers: int, every_position: bool
    ) -> None:
        super().__init__()
        self.every_position = every_position
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        states = self.embedding(tokens) + self.position(places)
        logits: Tensor
        if not self.every_position:
            logits = self.output(self.layers(states)[:, -1])
            return logits
        length = tokens.shape[1]  # no position may see the token that it is to predict
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        logits = self.output(self.layers(states, mask=later))
        return logits


def _require_tokens(name: str, shape: Shape) -> None:
    if len(shape) != 1:
        raise ValueError(
            f"model={name} takes rows of tokens, inputs of shape (length,), got {tuple(shape)}"
        )

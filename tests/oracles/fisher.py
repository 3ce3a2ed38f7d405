"""Fisher diagonals by one backward pass per sample and label."""

import torch
from torch import nn


def log_likelihood(model: nn.Module, x: torch.Tensor, y: int) -> torch.Tensor:
    return torch.log(torch.softmax(model(x[None]), dim=1))[0, y]


def squared_gradient(model: nn.Module, x: torch.Tensor, y: int) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    log_likelihood(model, x, y).backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad**2
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def empirical(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> dict:
    model.eval()
    squares = [squared_gradient(model, x, int(y)) for x, y in zip(inputs, labels, strict=True)]
    model.zero_grad(set_to_none=True)
    return {name: sum(s[name] for s in squares) / len(squares) for name in squares[0]}


def exact(model: nn.Module, inputs: torch.Tensor) -> dict:
    model.eval()
    result: dict[str, torch.Tensor] = {}
    for x in inputs:
        probabilities = torch.softmax(model(x[None]), dim=1)[0].detach()
        for label, probability in enumerate(probabilities):
            for name, square in squared_gradient(model, x, label).items():
                result[name] = result.get(name, 0) + probability * square / len(inputs)
    model.zero_grad(set_to_none=True)
    return result


def of_some(
    model: nn.Module, inputs: torch.Tensor, rows: list[int], each_stands_for: list[float]
) -> dict:
    """Return the exact kind by some of the samples, each of which stands for several."""
    total: dict[str, torch.Tensor] = {}
    for row, number in zip(rows, each_stands_for, strict=True):
        for name, square in exact(model, inputs[row : row + 1]).items():
            total[name] = total.get(name, 0) + number * square / len(inputs)
    return total

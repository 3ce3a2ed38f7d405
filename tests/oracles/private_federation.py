"""FedCurv under differential privacy on softmax regression, written out in NumPy's float64."""

import numpy as np


def local_training(start, inputs, targets, pull, *, strength, steps, lr):
    """Gradient descent on the loss and λ Σ P (θ − Q/P)²; returns θ̂ and the Fisher diagonal."""
    theta = {name: value.copy() for name, value in start.items()}
    onehot = np.eye(len(start["bias"]))[targets]
    for _ in range(steps):
        errors = _errors(theta, inputs, onehot)
        slope = {"weight": errors.T @ inputs / len(inputs), "bias": errors.mean(0)}
        for name in theta:
            if pull is not None:
                precision, weighted = pull
                slope[name] += 2 * strength * (precision[name] * theta[name] - weighted[name])
            theta[name] = theta[name] - lr * slope[name]
    errors = _errors(theta, inputs, onehot)
    fisher = {"weight": (errors**2).T @ inputs**2 / len(inputs), "bias": (errors**2).mean(0)}
    return theta, fisher


def _errors(theta, inputs, onehot):
    logits = inputs @ theta["weight"].T + theta["bias"]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True) - onehot


def run(
    start, data, *, strength, num_rounds, steps, lr, model_clip, clip, distance, least, noise_of
):
    """Return the model after each round, and the sums as they are sent.

    ``noise_of``: from ``model``, ``precision`` or ``slope`` and a parameter's shape the noise, in
    the order in which it is drawn.
    """
    theta, sums, own, history = dict(start), None, {}, []
    for _ in range(num_rounds):
        solutions, parts = {}, {}
        for j, (inputs, targets) in enumerate(data):
            pull = None if sums is None else rest(sums, own[j], theta, distance)
            solution, fisher = local_training(
                theta, inputs, targets, pull, strength=strength, steps=steps, lr=lr
            )
            slope = {name: fisher[name] * (solution[name] - theta[name]) for name in theta}
            length = np.sqrt(
                sum((fisher[n] ** 2).sum() + ((slope[n] / distance) ** 2).sum() for n in theta)
            )
            share = min(1.0, clip / length)
            parts[j] = {n: (share * fisher[n], share * slope[n]) for n in theta}
            own[j] = {n: (p, d + p * theta[n]) for n, (p, d) in parts[j].items()}
            solutions[j] = solution
        updates = {}
        for j, solution in solutions.items():
            length = np.sqrt(sum(((solution[n] - theta[n]) ** 2).sum() for n in theta))
            updates[j] = {
                n: min(1.0, model_clip / length) * (solution[n] - theta[n]) for n in theta
            }
        before = theta
        theta = {n: theta[n] + np.mean([u[n] for u in updates.values()], axis=0) for n in theta}
        theta = {n: value + noise_of("model", value.shape) for n, value in theta.items()}
        totals = {
            n: [sum(part[n][half] for part in parts.values()) for half in (0, 1)] for n in theta
        }
        for half, kind in enumerate(("precision", "slope")):
            for n in theta:
                totals[n][half] = totals[n][half] + noise_of(kind, theta[n].shape)
        sums = {}
        for n, (precision, slope) in totals.items():
            precision = np.where(precision > least, precision, 0)
            slope = np.clip(slope, -distance * precision, distance * precision)
            sums[n] = precision, slope + precision * before[n]
        history.append((theta, sums))
    return history


def rest(sums, own, theta, distance):
    """Return P and Q without a client's own, nowhere below 0 and nowhere far from the model."""
    precision, weighted = {}, {}
    for n, (p, q) in sums.items():
        left = np.maximum(p - own[n][0], 0)
        slope = q - own[n][1] - (p - own[n][0]) * theta[n]
        slope = np.clip(slope, -distance * left, distance * left)
        precision[n], weighted[n] = left, slope + left * theta[n]
    return precision, weighted

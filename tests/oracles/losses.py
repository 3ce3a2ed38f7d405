"""Noise-robust losses from probabilities, one sample and one label at a time, in float64."""

import math

import torch


def probabilities(z: torch.Tensor) -> list[float]:
    exponentials = [math.exp(v) for v in z.double().tolist()]
    return [e / sum(exponentials) for e in exponentials]


def ce(p, y):
    return -math.log(p[y])


def mae(p, y):
    return sum(abs(p[k] - (k == y)) for k in range(len(p))) / 2


def gce(p, y, q=0.7, truncation=None):
    at = p[y] if truncation is None else max(p[y], truncation)
    return (1 - at**q) / q


LOG_OF_ZERO = -9.210340371976182  # ln 1e-4


def rce(p, y, log_of_zero=LOG_OF_ZERO):
    return -sum(p[k] * (0.0 if k == y else log_of_zero) for k in range(len(p)))


def sce(p, y, alpha=0.1, beta=1.0):
    return alpha * ce(p, y) + beta * rce(p, y)


def nce(p, y):
    return ce(p, y) / sum(ce(p, k) for k in range(len(p)))


def agce(p, y, a=0.6, q=0.6):
    return ((a + 1) ** q - (a + p[y]) ** q) / q


def aul(p, y, a=5.5, q=3.0):
    return ((a - p[y]) ** q - (a - 1) ** q) / q


def ael(p, y, a=2.5):
    return math.exp(-p[y] / a)


def taylor(p, y, order=2):
    return sum((1 - p[y]) ** i / i for i in range(1, order + 1))


def nnce(p, y, clip=1e-7):
    above = [math.log(max(v, clip)) - math.log(clip) for v in p]
    return 1 - above[y] / sum(above)


def amse(p, y, a=30.0):
    return sum((p[k] - a * (k == y)) ** 2 for k in range(len(p))) / len(p)


def sharpened(p, y, m=1e5, clip=1e-8):
    q = [v / (1 + m) for v in p]
    q[p.index(max(p))] += m / (1 + m)
    return -math.log(max(q[y], clip))


def phuber(p, y, tau=10.0):
    if p[y] > 1 / tau:
        return -math.log(p[y])
    return -tau * p[y] + math.log(tau) + 1


def clipped(z, delta):
    norm = math.sqrt(sum(v * v for v in z.double().tolist()))
    return z * min(1.0, delta / norm)


def shannon_entropy(p):
    return -sum(v * math.log(v) for v in p if v > 0)


def js(p, y, weight=0.5):
    mixed = [weight * (k == y) + (1 - weight) * v for k, v in enumerate(p)]
    scale = -(1 - weight) * math.log(1 - weight)
    return (shannon_entropy(mixed) - (1 - weight) * shannon_entropy(p)) / scale


def kl(p, r):
    return sum(a * math.log(a / b) for a, b in zip(p, r, strict=True))


def uniform(p):
    return [1 / len(p)] * len(p)


REGULARIZERS = {
    "label_smoothing": lambda z, p: kl(uniform(p), p),
    "entropy": lambda z, p: kl(p, uniform(p)),
    "squared_output": lambda z, p: sum((v - 1 / len(p)) ** 2 for v in p) / 2,
    "logit": lambda z, p: sum((v - sum(z) / len(z)) ** 2 for v in z) / 2,
}


def regularized(z: torch.Tensor, y: int, name: str, strength: float) -> float:
    p = probabilities(z)
    penalty = REGULARIZERS[name](z.double().tolist(), p)
    return (ce(p, y) + strength * penalty) / (1 + strength)

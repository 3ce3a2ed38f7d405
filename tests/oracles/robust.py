"""Robust sums by their definitions: one number of the model after the other, in Python's floats."""


def trimmed(precisions: list[float], solutions: list[float], cut: int) -> tuple[float, float]:
    """Return P and Q of one number of the model from N clients' P_j and θ̂_j there."""
    clients = len(precisions)
    middle = sorted(precisions)[cut : clients - cut]
    cap = max(middle)
    pairs = sorted(zip(solutions, precisions, strict=True))[cut : clients - cut]
    weights = [min(p, cap) for _, p in pairs]
    if sum(weights) == 0:
        return 0.0, 0.0
    total = (clients - 1) * sum(middle) / len(middle)
    weighted = sum(w * theta for w, (theta, _) in zip(weights, pairs, strict=True))
    return total, total * weighted / sum(weights)


def krum(points: list[list[float]], liars: int, chosen: int) -> set[int]:
    """Return the clients with the least sums of distances to their n − f − 2 nearest others."""
    clients = len(points)

    def apart(a: list[float], b: list[float]) -> float:
        return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))

    scores = []
    for i in range(clients):
        nearest = sorted(apart(points[i], points[j]) for j in range(clients) if j != i)
        scores.append(sum(nearest[: max(1, clients - liars - 2)]))
    return set(sorted(range(clients), key=lambda i: scores[i])[:chosen])


def near(distances: dict[int, float], traces: dict[int, float]) -> set[int]:
    """Return the clients within 4 times the middle distance and 3 times the middle trace."""
    middle = {
        times: sorted(values.values())[len(values) // 2]
        for times, values in ((4, distances), (3, traces))
    }
    return {i for i in distances if distances[i] <= 4 * middle[4] and traces[i] <= 3 * middle[3]}

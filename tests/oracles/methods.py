"""FedNova, SCAFFOLD and FedDyn on softmax regression, written out in float64, nothing on a wire.

A model is its weight (C, D) and bias (C,) in one vector. A client is a table: inputs, targets,
steps, lr, momentum, nesterov, decay, mu; and for FedNova, where a round has several momenta, under
"momenta" which of them takes each step.
"""

import torch


def gradient(theta, client):
    """Return the gradient of the mean cross-entropy, and of (decay/2)·‖θ‖²."""
    inputs, targets = client["inputs"].double(), client["targets"]
    number, features = inputs.shape
    classes = len(theta) // (features + 1)
    weight, bias = theta[: classes * features].view(classes, features), theta[classes * features :]
    residual = torch.softmax(inputs @ weight.T + bias, 1)
    residual[torch.arange(number), targets] -= 1.0
    parts = [residual.T @ inputs / number, residual.sum(0) / number]
    return torch.cat([part.flatten() for part in parts]) + client["decay"] * theta


def weights_of_gradients(client):
    """Return the vector a of the paper: how much each gradient counts at the end."""
    steps, momentum = client["steps"], client["momentum"]
    if client["mu"]:
        return [(1 - client["lr"] * client["mu"]) ** (steps - 1 - k) for k in range(steps)]
    which = _momenta(client)
    own = [which[k:].count(which[k]) for k in range(steps)]
    later = [sum(momentum**j for j in range(number)) for number in own]
    return [1 + momentum * one for one in later] if client["nesterov"] else later


def fednova(start, clients, participants):
    """Return the model after each round; every client's lr is the same."""
    theta, history = start.double(), []
    for nodes in participants:
        total = sum(len(clients[i]["inputs"]) for i in nodes)
        share = {i: len(clients[i]["inputs"]) / total for i in nodes}
        direction, effective = torch.zeros_like(theta), 0.0
        for i in nodes:
            a = weights_of_gradients(clients[i])
            gathered = _gradients_on_the_way(theta, clients[i])
            normalised = sum(one * g for one, g in zip(a, gathered, strict=True)) / sum(a)
            direction += share[i] * normalised
            effective += share[i] * sum(a)
        theta = theta - clients[nodes[0]]["lr"] * effective * direction
        history.append(theta)
    return history


def _momenta(client):
    return client.get("momenta", [0] * client["steps"])


def _gradients_on_the_way(start, client):
    theta, found = start.clone(), []
    speeds = {which: torch.zeros_like(start) for which in _momenta(client)}
    for which in _momenta(client):
        g = gradient(theta, client)
        found.append(g)
        g = g + client["mu"] * (theta - start)
        speeds[which] = client["momentum"] * speeds[which] + g
        step = g + client["momentum"] * speeds[which] if client["nesterov"] else speeds[which]
        theta = theta - client["lr"] * step
    return found


def scaffold(start, clients, participants, *, server_lr=1.0, lost=None, number=None):
    """Return the model after each round, by option II, every client counted once.

    ``lost``: by round, who has lost its control variate before it: it begins at zero, and after the
    round all do. ``number``: of clients, those that never come included.
    """
    lost, number = lost or {}, number or len(clients)
    theta, history = start.double(), []
    c, own = torch.zeros_like(theta), [torch.zeros_like(theta) for _ in clients]
    for server_round, nodes in enumerate(participants, start=1):
        ways, changes = [], []
        for i in lost.get(server_round, ()):
            own[i] = torch.zeros_like(theta)
        for i in nodes:
            client, y = clients[i], theta.clone()
            for _ in range(client["steps"]):
                y = y - client["lr"] * (gradient(y, client) - own[i] + c)
            new = own[i] - c + (theta - y) / (client["steps"] * client["lr"])
            ways.append(y - theta)
            changes.append(new - own[i])
            own[i] = new
        theta = theta + server_lr * sum(ways) / len(nodes)
        c = c + len(nodes) / number * sum(changes) / len(nodes)
        if server_round in lost:
            c, own = torch.zeros_like(theta), [torch.zeros_like(theta) for _ in clients]
        history.append(theta)
    return history


def feddyn(start, clients, participants, *, alpha, lost=None):
    """Return the model after each round; every client is counted once; ``lost`` as above."""
    lost = lost or {}
    theta, history = start.double(), []
    h, own = torch.zeros_like(theta), [torch.zeros_like(theta) for _ in clients]
    for server_round, nodes in enumerate(participants, start=1):
        found = []
        for i in lost.get(server_round, ()):
            own[i] = torch.zeros_like(theta)
        for i in nodes:
            client, y = clients[i], theta.clone()
            speed = torch.zeros_like(theta)
            for _ in range(client["steps"]):
                g = gradient(y, client) - own[i] + alpha * (y - theta)
                speed = client["momentum"] * speed + g
                y = y - client["lr"] * speed
            own[i] = own[i] - alpha * (y - theta)
            found.append(y)
        h = h - alpha * sum(y - theta for y in found) / len(clients)
        if server_round in lost:
            h, own = torch.zeros_like(theta), [torch.zeros_like(theta) for _ in clients]
        theta = sum(found) / len(nodes) - h / alpha
        history.append(theta)
    return history

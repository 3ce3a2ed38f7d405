"""Who holds which samples: functions from labels to one index array per client.

Every partition is seeded and disjoint and leaves no client empty; all are complete but the natural
one, which may draw among the groups.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Indices = NDArray[np.int64]

_DIRICHLET_ATTEMPTS = 100


def iid(labels: Labels, num_clients: int, *, seed: int) -> list[Indices]:
    """Return equal random parts (sizes differ by at most one)."""
    _require_enough(len(labels), num_clients, "samples")
    order = np.random.default_rng(seed).permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, num_clients)]


def shards(
    labels: Labels,
    num_clients: int,
    *,
    seed: int,
    shards_per_client: int = 2,
    size_ratio: float = 1.0,
) -> list[Indices]:
    """Return parts made of shards of the samples sorted by label, dealt at random.

    The split that federated averaging was first tried on; with two shards a client mostly holds two
    classes.

    Args:
        labels: shape (N,).
        num_clients: >= 1.
        seed: decides the order within a label and the deal.
        shards_per_client: >= 1.
        size_ratio: >= 1: the shards of half of the clients, chosen at random, are so many times as
            large as the others'.
    """
    if shards_per_client < 1:
        raise ValueError(f"shards_per_client must be >= 1, got {shards_per_client}")
    if not 1 <= size_ratio < float("inf"):
        raise ValueError(f"size_ratio must be >= 1 and finite, got {size_ratio!r}")
    num_shards = num_clients * shards_per_client
    _require_enough(len(labels), num_shards, "samples")
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    deal = rng.permutation(num_shards).reshape(num_clients, shards_per_client)
    if size_ratio == 1:
        pieces = np.array_split(by_label, num_shards)
    else:
        large = deal[rng.permutation(num_clients)[: num_clients // 2]].ravel()
        weights = np.ones(num_shards)
        weights[large] = size_ratio
        ends = np.rint(np.cumsum(weights) / weights.sum() * len(labels)).astype(np.int64)
        pieces = np.split(by_label, ends[:-1])
        _require_enough(min(map(len, pieces)), 1, "samples in the smallest shard")
    return [np.sort(np.concatenate([pieces[i] for i in hand])) for hand in deal]


def dirichlet(
    labels: Labels, num_clients: int, *, seed: int, alpha: float = 0.3, min_samples: int = 1
) -> list[Indices]:
    """Return parts in which each class is spread by proportions drawn from Dirichlet(α).

    Args:
        labels: shape (N,).
        num_clients: >= 1.
        seed: decides everything.
        alpha: α > 0; small is very uneven, large is even.
        min_samples: drawn anew until every client has that many.

    Raises:
        ValueError: if no draw gives every client ``min_samples``.
    """
    _require_alpha(alpha)
    _require_enough(len(labels), num_clients * max(1, min_samples), "samples")
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(_DIRICHLET_ATTEMPTS):
        parts: list[list[Indices]] = [[] for _ in range(num_clients)]
        for members in classes:
            proportions = rng.dirichlet(np.full(num_clients, alpha))
            cuts = np.round(np.cumsum(proportions)[:-1] * len(members)).astype(int)
            for part, piece in zip(parts, np.split(rng.permutation(members), cuts), strict=True):
                part.append(piece)
        joined = [np.sort(np.concatenate(part)) for part in parts]
        if min(len(part) for part in joined) >= max(1, min_samples):
            return joined
    raise ValueError(
        f"no draw of {_DIRICHLET_ATTEMPTS} with alpha={alpha} gave each of {num_clients} clients "
        f"{max(1, min_samples)} samples; raise alpha, or lower num_clients or min_samples"
    )


def pathological(
    labels: Labels, num_clients: int, *, seed: int, classes_per_client: int = 2
) -> list[Indices]:
    """Return parts of exactly ``classes_per_client`` classes; a class's holders share it evenly.

    Args:
        labels: shape (N,).
        num_clients: >= 1; ``num_clients * classes_per_client`` must cover all classes.
        seed: decides who holds what.
        classes_per_client: from 1 to the number of classes.
    """
    classes = np.unique(labels)
    if not 1 <= classes_per_client <= len(classes):
        raise ValueError(
            f"classes_per_client must be in 1..{len(classes)}, got {classes_per_client}"
        )
    _require_enough(
        num_clients * classes_per_client,
        len(classes),
        "places for classes (clients x classes each)",
    )
    rng = np.random.default_rng(seed)
    # round and round through the shuffled classes: consecutive ones are distinct, and all are held
    circle = rng.permutation(classes)
    first = rng.permutation(num_clients) * classes_per_client
    hands = [circle[(start + np.arange(classes_per_client)) % len(classes)] for start in first]
    parts: list[list[Indices]] = [[] for _ in range(num_clients)]
    for label in classes:
        holders = [client for client, hand in enumerate(hands) if label in hand]
        members = rng.permutation(np.flatnonzero(labels == label))
        _require_enough(
            len(members), len(holders), f"samples of class {label}, one for each holder"
        )
        for client, piece in zip(holders, np.array_split(members, len(holders)), strict=True):
            parts[client].append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def quantity(
    labels: Labels, num_clients: int, *, seed: int, alpha: float = 0.5, min_samples: int = 1
) -> list[Indices]:
    """Return random parts whose sizes are drawn from Dirichlet(α); classes are spread evenly.

    Args:
        labels: shape (N,).
        num_clients: >= 1.
        seed: decides everything.
        alpha: α > 0; small is very uneven, large is even.
        min_samples: that every client gets beforehand, >= 1.
    """
    _require_alpha(alpha)
    fewest = max(1, min_samples)
    _require_enough(len(labels), num_clients * fewest, "samples")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    rest = len(labels) - num_clients * fewest
    shares = np.cumsum(rng.dirichlet(np.full(num_clients, alpha)))[:-1]
    ends = np.rint(shares * rest).astype(np.int64) + fewest * np.arange(1, num_clients)
    return [np.sort(part) for part in np.split(order, ends)]


def natural(
    groups: NDArray[np.int64], num_clients: int, *, seed: int, min_samples: int = 1
) -> list[Indices]:
    """Return a part for each of ``num_clients`` groups, such as writers, roles or hospitals.

    Args:
        groups: shape (N,), whose each sample is.
        num_clients: >= 1; so many are drawn where there are more, and the others' samples are left
            out.
        seed: decides which.
        min_samples: groups with fewer are left out, >= 1.

    Raises:
        ValueError: if there are fewer groups.
    """
    known, sizes = np.unique(groups, return_counts=True)
    large = known[sizes >= max(1, min_samples)]
    if num_clients > len(large):
        raise ValueError(
            f"num_clients={num_clients}: expected at most {len(large)}, the groups with at least "
            f"{max(1, min_samples)} samples (of {len(known)})"
        )
    if num_clients < 1:
        raise ValueError(f"num_clients must be >= 1, got {num_clients}")
    drawn = np.sort(np.random.default_rng(seed).permutation(large)[:num_clients])
    return [np.flatnonzero(groups == group) for group in drawn]


def checked_parts(parts: Any, number: int, num_clients: int, source: str) -> list[Indices]:
    """Return what a user's function made of ``number`` samples, as index arrays.

    Raises:
        ValueError: unless there is a part for each client, none is empty, and no sample is in two.
    """
    if not isinstance(parts, Sequence | np.ndarray) or isinstance(parts, str):
        raise ValueError(
            f"{source}: expected a list of indices per client, got {type(parts).__name__}"
        )
    arrays: list[Indices] = []
    for client, part in enumerate(parts):
        try:
            indices = np.asarray(part)
        except ValueError as error:
            raise ValueError(
                f"{source}: expected a list of indices per client ({error})"
            ) from error
        # an empty list has no type of its own
        if indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
            raise ValueError(
                f"{source}: expected a list of indices per client, integers of shape (n,), got "
                f"{indices.dtype} {indices.shape} for client {client}"
            )
        arrays.append(np.sort(indices.astype(np.int64)))
    sizes = [len(part) for part in arrays]
    if len(arrays) != num_clients or 0 in sizes:
        raise ValueError(
            f"{source}: expected {num_clients} parts with at least one sample each, got "
            f"{len(arrays)} of sizes {sizes[:10]}"
        )
    every = np.concatenate(arrays)
    if every.min() < 0 or every.max() >= number or len(np.unique(every)) < len(every):
        raise ValueError(
            f"{source}: expected indices from 0 to {number - 1}, each in one part at most, got "
            f"{every.min()} to {every.max()}, {len(every) - len(np.unique(every))} of them twice"
        )
    return arrays


def from_partitioner(partitioner: Any, labels: Labels, num_clients: int) -> list[Indices]:
    """Return the parts that a ``flwr_datasets`` partitioner makes of these labels.

    Args:
        partitioner: an object with ``dataset`` and ``load_partition``, with
            ``partition_by="label"`` where it asks for a column, and no data set assigned yet.
        labels: shape (N,).
        num_clients: how many partitions it makes.

    Raises:
        ValueError: if it makes another number of partitions.
    """
    from datasets import Dataset  # comes with flwr-datasets

    partitioner.dataset = Dataset.from_dict({"index": np.arange(len(labels)), "label": labels})
    if partitioner.num_partitions != num_clients:
        raise ValueError(
            f"expected a partitioner for num_clients={num_clients}, got one that makes "
            f"{partitioner.num_partitions} partitions"
        )
    return [
        np.sort(np.asarray(partitioner.load_partition(i)["index"], dtype=np.int64))
        for i in range(num_clients)
    ]


def flwr_datasets(
    labels: Labels, num_clients: int, *, seed: int, partitioner: str, **options: Any
) -> list[Indices]:
    """Return the parts of a partitioner of the package flwr-datasets, made by its class name.

    Args:
        labels: shape (N,).
        num_clients: given to the class as ``num_partitions`` where it takes that.
        seed: given to it where it takes one, as is ``partition_by``.
        partitioner: for example ``DirichletPartitioner``.
        **options: its other options.

    Raises:
        ValueError: if there is no such class.
        ImportError: if flwr-datasets is not installed.
    """
    try:
        import flwr_datasets.partitioner as package
    except ImportError as error:
        raise ImportError(
            "partition=flwr_datasets needs the package flwr-datasets: pip install flwr-datasets"
        ) from error

    known = [name for name in package.__all__ if name.endswith("Partitioner")]
    if partitioner not in known:
        raise ValueError(
            f"partition.partitioner must be one of {', '.join(known)}, got {partitioner!r}"
        )
    make = getattr(package, partitioner)
    given = {"num_partitions": num_clients, "partition_by": "label", "seed": seed}
    taken = {key: given[key] for key in inspect.signature(make).parameters if key in given}
    return from_partitioner(make(**{**taken, **options}), labels, num_clients)


# which look at the labels
BY_CLASS = ("shards", "dirichlet", "pathological", "flwr_datasets")

PARTITIONS: dict[str, Callable[..., list[Indices]]] = {
    "iid": iid,
    "shards": shards,
    "dirichlet": dirichlet,
    "pathological": pathological,
    "quantity": quantity,
    "flwr_datasets": flwr_datasets,
}


def _require_alpha(alpha: float) -> None:
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be > 0 and finite, got {alpha!r}")


def _require_enough(have: int, need: int, what: str) -> None:
    if need < 1:
        raise ValueError(f"num_clients must be >= 1, got {need}")
    if have < need:
        raise ValueError(f"expected at least {need} {what}, got {have}; change num_clients")

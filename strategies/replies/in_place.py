"""Replies' arrays read where they lie, for strategies that do nothing but average them."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Strategy

from fedcurv.strategies.wire.arrays import ArrayInPlace

_AVERAGING = {kind.aggregate_train for kind in (FedAvg, FedAvgM, FedAdam, FedYogi, FedAdagrad)}
_MEAN_OF_METRICS = FedAvg().train_metrics_aggr_fn


def read_in_place(strategy: Strategy, replies: Iterable[RecordDict]) -> None:
    """Spare a strategy that averages the copies that Flower's reader makes of every array.

    The numbers are the same, but cannot be written to. So others, which may write to what they
    read, get their replies as they came: strategies of the user's own, those that select or
    trim, and those with a function of the user's for metrics, which sees the arrays too.

    Args:
        strategy: that will aggregate the replies.
        replies: contents of those to training, checked.
    """
    own_function = getattr(strategy, "train_metrics_aggr_fn", None) is not _MEAN_OF_METRICS
    if type(strategy).aggregate_train not in _AVERAGING or own_function:
        return
    for content in replies:
        for key, record in list(content.array_records.items()):
            content[key] = _in_place(record)


def _in_place(record: ArrayRecord) -> ArrayRecord:
    found = ArrayRecord()
    for name, array in record.items():  # one by one: made of a dictionary it would copy them
        found[name] = ArrayInPlace(array.dtype, array.shape, array.stype, array.data)
    return found

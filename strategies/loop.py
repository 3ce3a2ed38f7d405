"""The server's round loop for any Flower strategy, reproducible and watchable."""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedcurv.strategies.checkpoint import Checkpoint, Progress
from fedcurv.strategies.fedcurv import DP_WRAPPERS, FedCurv
from fedcurv.strategies.ordered_grid import OrderedGrid
from fedcurv.strategies.replies import require_some_messages, require_some_success
from fedcurv.strategies.rounds import ClientRecord, RoundRecord, Traffic
from fedcurv.strategies.stopping import EarlyStopping

logger = logging.getLogger(__name__)

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


def start(
    strategy: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    *,
    num_rounds: int = 3,
    timeout: float | None = 3600.0,
    train_config: ConfigRecord | None = None,
    evaluate_config: ConfigRecord | None = None,
    evaluate_fn: EvaluateFn | None = None,
    wait_for_nodes: int = 1,
    wait_timeout: float = 600.0,
    seed: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    early_stopping: EarlyStopping | None = None,
    on_round: Callable[[RoundRecord], None] | None = None,
) -> Result:
    """Run federated learning and return Flower's Result; never a success that trained nothing.

    Beyond ``Strategy.start``: it waits for enough nodes before the first round (Flower's own
    sampling counts the nodes before it waits, so early rounds take too few); nodes are sampled and
    replies summed by stable client ids, so that one seed gives the same bits in every run; a round
    in which no client succeeds ends the run with the first client's traceback.

    Args:
        strategy: any Message-API strategy.
        grid: as Flower hands it to the ServerApp.
        arrays: the initial model.
        num_rounds: >= 1.
        timeout: seconds that training and evaluation may each take in a round; None waits for all.
        train_config: sent to clients with each training message.
        evaluate_config: sent to clients with each evaluation message.
        evaluate_fn: evaluates the global model on the server, before round 1 and after each round.
        wait_for_nodes: how many nodes must be connected before round 1.
        wait_timeout: seconds to wait for them.
        seed: makes the strategy's sampling of nodes reproducible; None leaves it random.
        checkpoint: folder for a file with the server's state, replaced after every round.
        resume: go on after the last round in that file, in place of ``arrays``; without it, an
            earlier run's file is refused. Where there is none, the run starts at the beginning.
        early_stopping: end before ``num_rounds``.
        on_round: called with every round's record, after it has been saved; ``JsonLines`` writes
            them to a file.

    Raises:
        TimeoutError: if too few nodes connect in time.
        RoundFailed: if no client succeeds in a round.
        FileExistsError: if the checkpoint is an earlier run's and ``resume`` is not set.
        TypeError: for FedCurv inside a differential-privacy wrapper.
        ValueError: if ``num_rounds`` < 1, the strategy selects nobody, or the checkpoint is damaged
            or another strategy's.
    """
    if num_rounds < 1:
        raise ValueError(f"num_rounds must be >= 1, got {num_rounds}")
    if resume and checkpoint is None:
        raise ValueError("resume needs a checkpoint: the folder to resume from")
    _refuse_differential_privacy(strategy)
    keeper = None if checkpoint is None else Checkpoint(Path(checkpoint), strategy)
    restored = None
    if keeper is not None and keeper.path.exists():
        if not resume:
            raise FileExistsError(
                f"{keeper.path} is the checkpoint of an earlier run; go on from it with "
                "resume=True, or choose another folder"
            )
        restored = keeper.restore()
    _wait_for_nodes(grid, wait_for_nodes, wait_timeout)
    notify = on_round or (lambda record: None)
    progress = restored or Progress(0, Result(arrays=arrays))
    run = _Run(strategy, OrderedGrid(grid), progress.result, timeout, seed, evaluate_fn)
    if restored is None:
        notify(RoundRecord(0, server_metrics=run.evaluate_on_server(0)))
    train_config = ConfigRecord() if train_config is None else train_config
    evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
    for server_round in range(progress.server_round + 1, num_rounds + 1):
        if early_stopping and server_round > 1 and early_stopping.should_stop(run.result):
            break
        began = time.perf_counter()
        clients, train_metrics = run.train(server_round, train_config)
        record = RoundRecord(
            server_round,
            clients=clients,
            train_metrics=train_metrics,
            client_metrics=run.evaluate_on_clients(server_round, evaluate_config),
            server_metrics=run.evaluate_on_server(server_round),
            seconds=time.perf_counter() - began,
        )
        if keeper is not None:
            keeper.save(Progress(server_round, run.result))
        notify(record)
    return run.result


@dataclass
class _Run:
    """What the phases of a round share; each updates ``result`` and returns its metrics."""

    strategy: Strategy
    grid: OrderedGrid
    result: Result
    timeout: float | None
    seed: int | None
    evaluate_fn: EvaluateFn | None

    def train(
        self, server_round: int, config: ConfigRecord
    ) -> tuple[Sequence[ClientRecord], Mapping[str, object]]:
        self.grid.learn_client_ids()
        with _seeded(self.seed, server_round, "train"):
            messages = list(
                self.strategy.configure_train(server_round, self.result.arrays, config, self.grid)
            )
        require_some_messages(server_round, messages)
        traffic = Traffic(messages, self.grid)
        one_by_one = traffic.noted(self.grid.replies(messages, timeout=self.timeout))
        if _takes_replies_one_by_one(self.strategy):
            arrays, metrics = self.strategy.aggregate_train(server_round, one_by_one)
        else:
            replies = list(one_by_one)
            require_some_success(server_round, replies, {})
            arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if arrays is not None:
            self.result.arrays = arrays
        if metrics is not None:
            self.result.train_metrics_clientapp[server_round] = metrics
        return traffic.client_records(getattr(self.strategy, "refused", {})), metrics or {}

    def evaluate_on_clients(self, server_round: int, config: ConfigRecord) -> Mapping[str, object]:
        with _seeded(self.seed, server_round, "evaluate"):
            messages = list(
                self.strategy.configure_evaluate(
                    server_round, self.result.arrays, config, self.grid
                )
            )
        if not messages:
            return {}
        replies = self.grid.send_and_receive(messages, timeout=self.timeout)
        metrics = self.strategy.aggregate_evaluate(server_round, replies)
        if metrics is not None:
            self.result.evaluate_metrics_clientapp[server_round] = metrics
        return metrics or {}

    def evaluate_on_server(self, server_round: int) -> Mapping[str, object]:
        if self.evaluate_fn is None:
            return {}
        metrics = self.evaluate_fn(server_round, self.result.arrays)
        if metrics is not None:
            self.result.evaluate_metrics_serverapp[server_round] = metrics
        return metrics or {}


def _takes_replies_one_by_one(strategy: Strategy) -> bool:
    """Return whether a strategy goes through the replies once: others may well do it twice."""
    return type(strategy).aggregate_train is FedCurv.aggregate_train


def _wait_for_nodes(grid: Grid, wanted: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while (connected := len(list(grid.get_node_ids()))) < wanted:
        if time.monotonic() >= deadline:
            raise TimeoutError(
                f"expected {wanted} nodes within {timeout:g} s, got {connected}; start the missing "
                "ones, or lower wait_for_nodes"
            )
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))


@contextmanager
def _seeded(seed: int | None, server_round: int, phase: str) -> Iterator[None]:
    """Seed the global random state, from which Flower's strategies sample, for one call.

    Nothing else may draw from it meanwhile, so the call must not wait for messages.
    """
    if seed is None:
        yield
        return
    state = random.getstate()
    random.seed(f"{seed}/{server_round}/{phase}")
    try:
        yield
    finally:
        random.setstate(state)


def _refuse_differential_privacy(strategy: Strategy) -> None:
    if isinstance(strategy, DP_WRAPPERS) and isinstance(strategy.strategy, FedCurv):
        raise TypeError(
            f"expected FedCurv without differential privacy, got it inside "
            f"{type(strategy).__name__}, which would clip and noise Fisher values as if they were "
            "weights"
        )

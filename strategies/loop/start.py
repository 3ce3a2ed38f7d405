"""The server's round loop for any Flower strategy, reproducible and watchable."""

import logging
import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedcurv.strategies.legacy import refuse_legacy_strategy
from fedcurv.strategies.loop.best_model import BestModel
from fedcurv.strategies.loop.checkpoint import Checkpoint, Progress
from fedcurv.strategies.loop.lost import LostClients, lost_evaluations
from fedcurv.strategies.loop.odd_means import OddMeans
from fedcurv.strategies.loop.ordered_grid import OrderedGrid, require_number_or_ids
from fedcurv.strategies.loop.rounds import ClientRecord, RoundRecord, Traffic
from fedcurv.strategies.loop.statistics import (
    SendsStatistics,
    refuse_bounds_of_the_loop,
    refuse_differential_privacy,
    warn_of_own_start,
)
from fedcurv.strategies.loop.stopping import EarlyStopping
from fedcurv.strategies.loop.strategy_calls import StrategyCalls
from fedcurv.strategies.loop.watchers import OnRound, called_in_rounds
from fedcurv.strategies.replies.check import require_some_messages, require_some_success
from fedcurv.strategies.replies.screen import Screen, averages

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
    wait_for_nodes: int | Collection[str] = 1,
    wait_timeout: float = 600.0,
    seed: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    best_model: BestModel | None = None,
    early_stopping: EarlyStopping | None = None,
    replies_are_models: bool | None = None,
    max_examples: float | None = None,
    on_round: OnRound | Sequence[OnRound] = (),
) -> Result:
    """Run federated learning and return Flower's Result; never a success that trained nothing.

    Beyond ``Strategy.start``: it waits for enough nodes before the first round (Flower's own
    sampling counts the nodes before it waits, so early rounds take too few); nodes are sampled and
    replies summed by stable client ids, so that one seed gives the same bits in every run; a round
    in which no client succeeds ends the run with the first client's traceback. No reply ends it,
    whatever it holds: one that the strategy could not stand is refused with the client's name.

    Args:
        strategy: any Message-API strategy.
        grid: as Flower hands it to the ServerApp.
        arrays: the initial model.
        num_rounds: >= 1.
        timeout: seconds that training and evaluation may each take in a round; None waits for all.
        train_config: sent to clients with each training message.
        evaluate_config: sent to clients with each evaluation message.
        evaluate_fn: evaluates the global model on the server, before round 1 and after each round.
        wait_for_nodes: how many nodes must be connected before the first round, or the ids of the
            clients that must be.
        wait_timeout: seconds to wait for them, and in each round for as many as the strategy wants.
        seed: makes the strategy's sampling of nodes reproducible; None leaves it random.
        checkpoint: folder for a file with the server's state, which is replaced; no other server
            may use it meanwhile.
        checkpoint_every: rounds from one checkpoint to the next; the last round has one in any
            case. Resuming repeats the rounds after it, so that private_sums take 1 only.
        resume: go on after the last round in that file, in place of ``arrays``; without it, an
            earlier run's file is refused. Where there is none, the run starts at the beginning.
        best_model: keeps the model of the best round in a file.
        early_stopping: end before ``num_rounds``.
        replies_are_models: whether a reply must hold what was sent, arrays of the same names and
            shapes and finite: it is refused otherwise. None: it must under Flower's own strategies
            that average, and under others if most replies of a round do; False for strategies
            whose clients send other things. FedCurv, which checks replies itself, wants models.
        max_examples: the largest weight that a reply may have; FedCurv has its own.
        on_round: called with every round's record, after it has been saved, one function or
            several; ``JsonLines``, ``TensorBoard`` and ``ScalarLog`` write them down.

    Raises:
        TimeoutError: if too few nodes connect in time, before the first round or in a later one.
        RoundFailed: if no client succeeds in a round.
        BlockingIOError: if another server uses the checkpoint's folder.
        FileExistsError: if the checkpoint is an earlier run's and ``resume`` is not set.
        StrategyFailed: if a method of the strategy raises an error, or returns something else.
        TypeError: for FedCurv inside a differential-privacy wrapper, ``replies_are_models`` or
            ``max_examples`` beside FedCurv, a strategy of Flower's legacy API, one client id
            without a list around it, or an ``on_round`` that cannot be called.
        ValueError: if a number is out of range, the strategy selects nobody, or the checkpoint is
            damaged or of another strategy or model.
    """
    for name, number in (("num_rounds", num_rounds), ("checkpoint_every", checkpoint_every)):
        if isinstance(number, bool) or not isinstance(number, Integral) or not number >= 1:
            raise ValueError(f"{name} must be >= 1, got {number!r}; give a whole number")
    for name, seconds in (("timeout", timeout), ("wait_timeout", wait_timeout)):
        is_endless = seconds is None and name == "timeout"
        if not is_endless and not (isinstance(seconds, int | float) and seconds >= 0):
            raise ValueError(f"{name} must be >= 0, in seconds, got {seconds!r}")
    require_number_or_ids(wait_for_nodes)
    called = called_in_rounds(on_round)
    if resume and checkpoint is None:
        raise ValueError("resume needs a checkpoint: the folder to resume from")
    refuse_legacy_strategy(strategy)
    refuse_differential_privacy(strategy)
    if (replies_are_models, max_examples) != (None, None):
        refuse_bounds_of_the_loop(strategy)
    warn_of_own_start(strategy)
    keeper = None if checkpoint is None else Checkpoint(checkpoint, strategy, checkpoint_every)
    with nullcontext() if keeper is None else keeper.locked():
        restored = None
        if keeper is not None and keeper.path.exists():
            if not resume:
                raise FileExistsError(
                    f"{keeper.path} is the checkpoint of an earlier run; go on from it with "
                    "resume=True, or choose another folder"
                )
            is_model = isinstance(strategy, SendsStatistics) or averages(strategy)
            restored = keeper.restore(arrays if is_model else None)
            if restored.server_round >= num_rounds:
                logger.warning(
                    "%s has %d rounds already, and num_rounds is %d: nothing is left to train",
                    keeper.path,
                    restored.server_round,
                    num_rounds,
                )
        ordered = OrderedGrid(grid)
        ordered.wait_for(wait_for_nodes, wait_timeout)
        watchers: list[OnRound] = [LostClients(), OddMeans(), *called]
        progress = restored or Progress(0, Result(arrays=arrays))
        if isinstance(strategy, SendsStatistics):
            max_examples = strategy.max_examples
        screen = Screen(strategy, replies_are_models=replies_are_models, max_examples=max_examples)
        run = _Run(
            strategy, ordered, progress.result, timeout, wait_timeout, seed, evaluate_fn, screen
        )
        run.is_unanswered = restored is not None

        def is_over(server_round: int) -> bool:
            if server_round >= num_rounds:
                return True
            if early_stopping is None or server_round == 0 or run.awaits_evaluation():
                return False
            return early_stopping.should_stop(run.result)

        def finish(record: RoundRecord, *, save: bool) -> None:
            if best_model is not None and (record.server_metrics or record.client_metrics):
                best_model.keep(record.server_round, run.result)
            if keeper is not None and save:
                keeper.save(Progress(record.server_round, run.result))
            for watch in watchers:
                watch(record)

        server_round = progress.server_round
        if restored is None:
            finish(RoundRecord(0, server_metrics=run.evaluate_on_server(0)), save=False)
        train_config = ConfigRecord() if train_config is None else train_config
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        while not is_over(server_round):
            server_round += 1
            began = time.perf_counter()
            clients, train_metrics = run.train(server_round, train_config)
            if keeper is not None:
                keeper.save_released(Progress(server_round, run.result))
            record = RoundRecord(
                server_round,
                clients=clients,
                train_metrics=train_metrics,
                client_metrics=run.evaluate_on_clients(server_round, evaluate_config),
                server_metrics=run.evaluate_on_server(server_round),
                refused_evaluations=run.refused_evaluations,
                lost_evaluations=run.lost_evaluations,
                seconds=time.perf_counter() - began,
            )
            finish(record, save=is_over(server_round) or server_round % checkpoint_every == 0)
        return run.result


@dataclass
class _Run:
    """What the phases of a round share; each updates ``result`` and returns its metrics."""

    strategy: Strategy
    grid: OrderedGrid
    result: Result
    timeout: float | None
    wait_timeout: float
    seed: int | None
    evaluate_fn: EvaluateFn | None
    screen: Screen
    refused_evaluations: Mapping[str, str] = field(default_factory=dict)
    lost_evaluations: Mapping[str, str] = field(default_factory=dict)
    is_unanswered: bool = False

    def __post_init__(self) -> None:
        self.calls = StrategyCalls(self.strategy)

    def awaits_evaluation(self) -> bool:
        """Return whether clients were asked to evaluate and none has done so in any round."""
        result = self.result
        histories = (result.evaluate_metrics_serverapp, result.evaluate_metrics_clientapp)
        return self.is_unanswered and not any(histories)

    def train(
        self, server_round: int, config: ConfigRecord
    ) -> tuple[Sequence[ClientRecord], Mapping[str, object]]:
        self.grid.learn_client_ids()
        with self._sampling(server_round, "train"):
            messages = self.calls.configure_train(
                server_round, self.result.arrays, config, self.grid
            )
        require_some_messages(server_round, messages)
        traffic = Traffic(messages, self.grid)
        one_by_one = traffic.noted(self.grid.replies(messages, timeout=self.timeout))
        refused: Mapping[str, str] = {}
        if isinstance(self.strategy, SendsStatistics):
            once = self.strategy.takes_replies_once
            arrays, metrics = self.calls.aggregate_train(
                server_round, one_by_one if once else list(one_by_one)
            )
        else:
            replies = list(one_by_one)
            fit, refused, finish = self.screen.train(
                server_round, self.result.arrays, replies, lambda m: f"client {self._client_id(m)}"
            )
            require_some_success(server_round, replies, refused)
            arrays, metrics = self.calls.aggregate_train(server_round, fit)
            arrays = None if arrays is None else finish(arrays)
        own = getattr(self.strategy, "refused", None)
        refused = {**refused, **(own if isinstance(own, Mapping) else {})}
        if arrays is None:
            self.calls.say_no_model(server_round)
        else:
            self.result.arrays = arrays
        if metrics is not None:
            self.result.train_metrics_clientapp[server_round] = metrics
        return traffic.client_records(refused, getattr(self.strategy, "lost", None)), metrics or {}

    def _client_id(self, message: Message) -> str:
        return self.grid.client_id(message.metadata.src_node_id)

    @contextmanager
    def _sampling(self, server_round: int, phase: str) -> Iterator[None]:
        with _seeded(self.seed, server_round, phase), self.grid.sampling(self.wait_timeout):
            yield

    def evaluate_on_clients(self, server_round: int, config: ConfigRecord) -> Mapping[str, object]:
        with self._sampling(server_round, "evaluate"):
            messages = self.calls.configure_evaluate(
                server_round, self.result.arrays, config, self.grid
            )
        self.refused_evaluations = self.lost_evaluations = {}
        if not messages:
            return {}
        replies = self.grid.send_and_receive(messages, timeout=self.timeout)
        self.lost_evaluations = lost_evaluations(messages, replies, self.grid.client_id)
        fit, refused = self.screen.evaluate(
            server_round,
            replies,
            lambda m: f"node-{m.metadata.src_node_id} (client {self._client_id(m)})",
        )
        self.refused_evaluations = {
            self._client_id(m): refused[m.metadata.reply_to_message_id]
            for m in replies
            if m.metadata.reply_to_message_id in refused
        }
        metrics = self.calls.aggregate_evaluate(server_round, fit)
        self.is_unanswered = not metrics
        if metrics is not None:
            self.result.evaluate_metrics_clientapp[server_round] = metrics
        return metrics or {}

    def evaluate_on_server(self, server_round: int) -> Mapping[str, object]:
        if self.evaluate_fn is None:
            return {}
        metrics = self.evaluate_fn(server_round, self.result.arrays)
        if metrics is None:
            return {}
        if not isinstance(metrics, MetricRecord):
            wanted = "expected evaluate_fn to return a MetricRecord or None"
            raise TypeError(f"round {server_round}: {wanted}, got {type(metrics).__name__}")
        self.result.evaluate_metrics_serverapp[server_round] = metrics
        return metrics


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

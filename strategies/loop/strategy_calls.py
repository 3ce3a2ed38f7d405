"""A strategy's methods, called so that what goes wrong names strategy, round and method."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedcurv.errors import in_one_line
from fedcurv.strategies.flower_private import let_unmoved_models_be_clipped
from fedcurv.strategies.loop.ordered_grid import NodesMissing
from fedcurv.strategies.loop.strategy_state import name_of
from fedcurv.strategies.replies.check import NobodySelected, RoundFailed
from fedcurv.strategies.unfit import Misplaced

logger = logging.getLogger(__name__)

# what names itself already, and is no fault in the strategy's code
_TOLD = (RoundFailed, NobodySelected, NodesMissing, Misplaced)


class StrategyFailed(RuntimeError):
    """A strategy's method raised an error, which is the cause, or returned something unfit."""


class StrategyCalls:
    """Calls a strategy's methods, and checks what they return.

    Every method raises StrategyFailed for an error of the strategy's, whatever its class, and for
    what is not of the types that Flower's Message API has.

    Args:
        strategy: the one to call.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._told = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the messages to send for training."""
        with self._named(server_round, "configure_train"):
            made = self._strategy.configure_train(server_round, arrays, config, grid)
            messages = made if made is None else list(made)  # it may be a generator
        return self._messages(server_round, "configure_train", messages)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the messages to send for evaluation, which may be none."""
        with self._named(server_round, "configure_evaluate"):
            made = self._strategy.configure_evaluate(server_round, arrays, config, grid)
            messages = made if made is None else list(made)
        return self._messages(server_round, "configure_evaluate", messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model and the metrics, either of which may be None.

        Args:
            server_round: the round.
            replies: if they come one by one, an error may be the grid's, and is left as it is.
        """
        let_unmoved_models_be_clipped()
        if isinstance(replies, Sequence):
            with self._named(server_round, "aggregate_train"):
                made: Any = self._strategy.aggregate_train(server_round, replies)
        else:
            made = self._strategy.aggregate_train(server_round, replies)
        is_pair = isinstance(made, tuple) and len(made) == 2
        arrays, metrics = made if is_pair else (made, made)
        if not (
            is_pair
            and isinstance(arrays, ArrayRecord | None)
            and isinstance(metrics, MetricRecord | None)
        ):
            got = [type(one).__name__ for one in made] if is_pair else type(made).__name__
            self._refuse(
                server_round,
                "aggregate_train",
                f"an ArrayRecord and a MetricRecord, or None for either, got {got}",
            )
        return arrays, metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Sequence[Message]
    ) -> MetricRecord | None:
        """Return the metrics."""
        with self._named(server_round, "aggregate_evaluate"):
            made: Any = self._strategy.aggregate_evaluate(server_round, replies)
        if not isinstance(made, MetricRecord | None):
            wanted = f"a MetricRecord or None, got {type(made).__name__}"
            self._refuse(server_round, "aggregate_evaluate", wanted)
        return made

    def say_no_model(self, server_round: int) -> None:
        """Say once that ``aggregate_train`` returned no model."""
        if not self._told:
            self._told = True
            logger.warning(
                "round %d: aggregate_train of %s returned no model: the one before stays; said "
                "once",
                server_round,
                name_of(self._strategy),
            )

    @contextmanager
    def _named(self, server_round: int, method: str) -> Iterator[None]:
        try:
            yield
        except (StrategyFailed, *_TOLD):
            raise
        except Exception as error:
            raise StrategyFailed(
                f"round {server_round}: {method} of {name_of(self._strategy)} raised "
                f"{in_one_line(error)}"
            ) from error

    def _messages(
        self, server_round: int, method: str, messages: list[Message] | None
    ) -> list[Message]:
        got = "None" if messages is None else ""
        for message in messages or ():
            if not isinstance(message, Message):
                got = f"{type(message).__name__} among them"
        if messages is None or got:
            self._refuse(server_round, method, f"messages, or an empty list for none, got {got}")
        return messages

    def _refuse(self, server_round: int, method: str, wanted_and_got: str) -> NoReturn:
        raise StrategyFailed(
            f"round {server_round}: expected {method} of {name_of(self._strategy)} to return "
            f"{wanted_and_got}"
        )

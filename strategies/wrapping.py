"""A strategy around another one: what is not its own is the wrapped one's."""

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedcurv.strategies.flower_private import who_called
from fedcurv.strategies.loop.ordered_grid import OrderedGrid
from fedcurv.strategies.loop.strategy_calls import StrategyCalls
from fedcurv.strategies.replies.check import require_some_messages
from fedcurv.strategies.replies.screen import Screen
from fedcurv.strategies.unfit import DP_WRAPPERS, inside_differential_privacy


class Wrapping(Strategy):
    """Leaves evaluation to the strategy that it wraps, and attributes that it has not itself.

    A class derived from this sets ``strategy`` and ``_screen`` at the end of its construction:
    from there on, what is not among its attributes belongs to the wrapped strategy.

    Attributes:
        strategy: the wrapped strategy.
    """

    strategy: Strategy
    _screen: Screen
    # ids of the clients that are connected, by node
    _known: Mapping[int, str]

    def _wrapped_messages(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        *,
        called: str,
    ) -> list[Message]:
        """Return the wrapped strategy's training messages, of which there must be some.

        Args:
            server_round: as ``configure_train`` got it.
            arrays: likewise.
            config: likewise.
            grid: likewise.
            called: the method's name, for what it says inside differential privacy.
        """
        if (wrapper := who_called("configure_train", DP_WRAPPERS)) is not None:
            raise inside_differential_privacy(wrapper, called)
        messages = StrategyCalls(self.strategy).configure_train(server_round, arrays, config, grid)
        self._known = grid.known() if isinstance(grid, OrderedGrid) else {}
        require_some_messages(server_round, messages)
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave evaluation to the wrapped strategy."""
        return StrategyCalls(self.strategy).configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Leave evaluation to the wrapped strategy, without replies that are not fit for use."""
        fit, _ = self._screen.evaluate(
            server_round, list(replies), lambda m: f"node-{m.metadata.src_node_id}"
        )
        return StrategyCalls(self.strategy).aggregate_evaluate(server_round, fit)

    def __getattr__(self, name: str) -> Any:
        """Return what the wrapped strategy has and this one has not."""
        # before construction, in copy and pickle, there is no wrapped strategy yet
        wrapped = vars(self).get("strategy")
        if wrapped is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute where it is: the wrapped strategy's options belong to that one."""
        wrapped = vars(self).get("strategy")
        is_own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if wrapped is not None and not is_own and hasattr(wrapped, name):
            setattr(wrapped, name, value)
        else:
            super().__setattr__(name, value)

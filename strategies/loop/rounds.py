"""Record of a round, for whoever watches: its clients, what travelled, and the metrics."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fedcurv.strategies.loop.ordered_grid import OrderedGrid
from fedcurv.strategies.wire.records import CONFIG, LOCAL_TERM, client_id_order

# larger ones have no place in JSON, nor in a float
_LARGEST_INTEGER = 2**64
# why there is nothing of a client
NO_REPLY = "no reply in time"


@dataclass(frozen=True)
class ClientRecord:
    """One client's part in one training round.

    Attributes:
        client_id: its stable id.
        status: ``ok``, ``failed`` (it answered with an error), ``refused`` (its reply was not fit
            for use, or another node is that client) or ``missing`` (no reply in time).
        reason: why it was not ``ok``.
        down: payload of the message sent to it, bytes by record.
        up: payload of its reply, likewise.
        metrics: what it reported.
        local_term: that it was asked to add to its objective; nothing if to add none.
        strength: λ of the others' pull that it was sent; None where it was sent none.
    """

    client_id: str
    status: str
    reason: str
    down: Mapping[str, int]
    up: Mapping[str, int]
    metrics: Mapping[str, float]
    local_term: str = ""
    strength: float | None = None

    @property
    def bytes_down(self) -> int:
        """Payload of the message sent to it."""
        return sum(self.down.values())

    @property
    def bytes_up(self) -> int:
        """Payload of its reply."""
        return sum(self.up.values())


@dataclass(frozen=True)
class RoundRecord:
    """One round, for whoever watches.

    Attributes:
        server_round: 1, 2, ...; 0 is the evaluation before the first.
        clients: in order of their ids.
        train_metrics: as the strategy aggregated them.
        client_metrics: of evaluation on the clients, as the strategy aggregated them.
        server_metrics: what ``evaluate_fn`` returned.
        refused_evaluations: by client id, why its evaluation was not fit for use.
        lost_evaluations: by client id, why there is none: its error, or that it is silent.
        seconds: wall-clock time of the round, evaluation included.
    """

    server_round: int
    clients: Sequence[ClientRecord] = ()
    train_metrics: Mapping[str, object] = field(default_factory=dict)
    client_metrics: Mapping[str, object] = field(default_factory=dict)
    server_metrics: Mapping[str, object] = field(default_factory=dict)
    refused_evaluations: Mapping[str, str] = field(default_factory=dict)
    lost_evaluations: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Traffic:
    """A round's messages by size, metrics and error, noted before a strategy changes them.

    Args:
        messages: that are going to be sent.
        grid: knows the nodes' client ids.
    """

    def __init__(self, messages: Sequence[Message], grid: OrderedGrid) -> None:
        self._messages = messages
        self._grid = grid
        self._sizes: dict[str, Mapping[str, int]] = {}
        self._metrics: dict[str, Mapping[str, float]] = {}
        self._errors: dict[str, str] = {}

    def noted(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies once they are noted."""
        for reply in replies:
            message_id = reply.metadata.reply_to_message_id
            if reply.has_error():
                self._errors[message_id] = reply.error.reason or f"code {reply.error.code}"
            self._sizes[message_id] = _bytes_by_record(reply)
            self._metrics[message_id] = _metrics_of(reply)
            yield reply

    def client_records(
        self, refused: Mapping[str, str], lost: object = None
    ) -> tuple[ClientRecord, ...]:
        """Return every client's part, in the order of ids.

        Args:
            refused: reason by message id.
            lost: reason by client, for those that were lost before they were sent the model, too;
                anything else for none.
        """
        rows = [
            ClientRecord(self._grid.client_id(node), "refused", reason, {}, {}, {})
            for node, reason in self._grid.refused().items()
        ]
        for message in self._messages:
            message_id = message.metadata.message_id
            status, reason = "ok", ""
            if message_id not in self._sizes:
                status, reason = "missing", NO_REPLY
            elif message_id in self._errors:
                status, reason = "failed", self._errors[message_id]
            elif message_id in refused:
                status, reason = "refused", refused[message_id]
            rows.append(
                ClientRecord(
                    client_id=self._grid.client_id(message.metadata.dst_node_id),
                    status=status,
                    reason=reason,
                    down=_bytes_by_record(message),
                    up=self._sizes.get(message_id, {}),
                    metrics=self._metrics.get(message_id, {}),
                    local_term=_local_term(message),
                    strength=_strength(message),
                )
            )
        there = {row.client_id for row in rows}
        rows += [
            ClientRecord(client_id, "failed", reason, {}, {}, {})
            for client_id, reason in (lost.items() if isinstance(lost, Mapping) else ())
            if client_id not in there
        ]
        return tuple(sorted(rows, key=lambda row: client_id_order(row.client_id)))


def _local_term(message: Message) -> str:
    terms = (record.get(LOCAL_TERM, "") for record in message.content.config_records.values())
    return next((str(term) for term in terms if term), "")


def _strength(message: Message) -> float | None:
    """Return λ of a message; one without sums of others has no pull, whatever it says."""
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    strength = config.get("strength")
    if not config.get("sums-round") or not isinstance(strength, int | float):
        return None
    return float(strength)


def _bytes_by_record(message: Message) -> dict[str, int]:
    if not message.has_content():
        return {}
    return {name: _bytes_in(record) for name, record in message.content.items()}


def _bytes_in(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    if not isinstance(record, ConfigRecord):
        return record.count_bytes()
    # Flower's own count takes an empty text or list for an error
    return sum(len(name) + _bytes_of(value) for name, value in record.items())


def _bytes_of(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_bytes_of, value))
    if isinstance(value, str | bytes):
        return len(value)
    return 1 if isinstance(value, bool) else 8


def _metrics_of(message: Message) -> dict[str, float]:
    if not message.has_content():
        return {}
    return {
        name: value
        for record in message.content.metric_records.values()
        for name, value in record.items()
        if isinstance(value, float) or (isinstance(value, int) and abs(value) <= _LARGEST_INTEGER)
    }

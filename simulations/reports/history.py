"""History of one strategy's run, round by round."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedcurv.simulations.console.telling import tell_once
from fedcurv.strategies.loop.rounds import RoundRecord


@dataclass
class History:
    """What happened in one strategy's run.

    Attributes:
        strategy: its name in the configuration.
        rounds: in order, the evaluation before the first round included.
        failure: why it did not come to its end, as when the training diverges; else empty.
    """

    strategy: str
    rounds: list[RoundRecord] = field(default_factory=list)
    failure: str = ""

    def note(self, record: RoundRecord) -> None:
        """Add a round, in the place of what an interrupted run made of it."""
        self.rounds = [r for r in self.rounds if r.server_round < record.server_round]
        self.rounds.append(record)


def tell_unused_terms(config: Mapping[str, Any], histories: Iterable[History]) -> None:
    """Say which local terms of a configuration no strategy's messages named in any round.

    Args:
        config: resolved.
        histories: of all its strategies.
    """
    clients = [c for history in histories for record in history.rounds for c in record.clients]
    named = {client.local_term for client in clients}
    for term in config["client"].get("terms") or {}:
        if clients and term not in named:
            tell_once(
                f"client.terms.{term} was not used, as no strategy's messages name it; a strategy "
                f"asks for it by config['local-term'] = {str(term)!r} in configure_train"
            )

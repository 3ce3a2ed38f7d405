"""What happened in one strategy's run, round by round."""

from dataclasses import dataclass, field

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

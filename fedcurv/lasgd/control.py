"""The control plane: what the workers of a site agree on through a key-value store.

A *round* r is one landing of the common model. A *generation* g is a group of members; a member's
loss, a newcomer or a leaver starts another. An All-Reduce may succeed at some members and fail at
others, so a round counts only by a verdict: ``commit`` once all members have its sum, or ``abort``
by the first that gives up; whichever is written first stands.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, cast

from fedcurv.lasgd.store import Asked, Store, WorkerLost

_NAP_S = 0.01
_COMMIT, _ABORT = b"commit", b"abort"


@dataclass(frozen=True)
class Generation:
    """Who takes part.

    Attributes:
        number: g, from 0.
        members: ids, in ascending order.
        fresh: members that do not have the anchor yet.
        round: r of the next landing.
        admitted: how many newcomers have been let in so far.
    """

    number: int
    members: list[int]
    fresh: list[int] = field(default_factory=list)
    round: int = 0
    admitted: int = 0

    def without(self, lost: Iterable[int]) -> "Generation":
        """Return the next generation, of those that are left."""
        left = [m for m in self.members if m not in set(lost)]
        fresh = [m for m in self.fresh if m in left]
        return Generation(self.number + 1, left, fresh, self.round, self.admitted)


class Control:
    """One worker's view of the store.

    A blocking call occupies a store's client: give each thread a view of its own (:meth:`clone`).

    Args:
        store: a client of its own, for this training alone.
        worker: this worker's id.
        timeout_s: for what others must do.
    """

    def __init__(self, store: Store, worker: int, timeout_s: float) -> None:
        self.worker, self.timeout_s = worker, timeout_s
        self.store = cast(Store, Asked(store, worker))
        # for one sum, and then again for the survivors to meet
        self.patience_s = timeout_s / 2

    def clone(self) -> "Control":
        """Return a view for another thread."""
        return Control(self.client(), self.worker, self.timeout_s)

    def client(self) -> Any:
        """Return another client of the store itself."""
        return self.store.clone()

    # who is there

    def arrivals(self) -> int:
        """Return how many have begun as this worker, this one included."""
        return self.store.add(f"begun/{self.worker}", 1)

    def introduce(self, signature: str) -> None:
        """Say that this worker is there, and what its model looks like."""
        self.store.set(f"worker/{self.worker}", signature)

    def signatures(self, workers: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Yield workers as they come, and what they say of themselves.

        Raises:
            TimeoutError: naming those who did not come.
        """
        missing, deadline = list(workers), time.monotonic() + self.timeout_s
        while missing:
            come = [w for w in missing if self.store.check([f"worker/{w}"])]
            missing = [w for w in missing if w not in come]
            for worker in come:
                yield worker, self.store.get(f"worker/{worker}").decode()
            if missing and time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {self.timeout_s:g} s for worker {', '.join(map(str, missing))}, in "
                    "vain; are all workers started, with the same world size and master address?"
                )
            time.sleep(_NAP_S)

    def _come(self, keys: list[str], seconds: float) -> bool:
        """Wait until all are there; return whether they are."""
        deadline = time.monotonic() + seconds
        while not (are_there := self.store.check(keys)) and time.monotonic() < deadline:
            time.sleep(_NAP_S)
        return are_there

    def note_world_size(self, size: int) -> None:
        """Note how many workers begin."""
        self.store.set("world-size", str(size))

    def world_size(self) -> int:
        """Return how many workers have begun."""
        return int(self.store.get("world-size"))

    def flag_dead(self, worker: int) -> None:
        """Tell the others that a worker's process has ended, so that none waits for it."""
        self.store.set(f"dead/{worker}", "")

    def say_goodbye(self) -> None:
        """Say that this worker needs the store no more."""
        self.store.set(f"goodbye/{self.worker}", "")

    def part(self, members: Iterable[int]) -> None:
        """Say goodbye; worker 0, with which the store may end, waits for the others, not long."""
        with contextlib.suppress(WorkerLost):
            self.say_goodbye()
            if self.worker == 0:
                self._come([f"goodbye/{member}" for member in members], self.patience_s)

    # what they must have in common

    def agree(self, what: str, text: str) -> str:
        """Return what the first worker that was asked has said."""
        return self.store.compare_set(f"agreed/{what}", "", text).decode()

    def stop(self, why: str, round_: int) -> str:
        """End the training at every worker; return why, which the first says.

        Args:
            why: in one line.
            round_: of this worker's next landing; others may be one further.
        """
        stands = self.agree("end", why)
        self.open(round_)
        self.open(round_ + 1)
        return stands

    def stopped(self) -> str | None:
        """Return why the training is to end; None if it is not."""
        is_there = self.store.check(["agreed/end"])
        return self.store.get("agreed/end").decode() if is_there else None

    def tell_counts(self, text: str) -> None:
        """Say how far this worker's counts are, as it finishes."""
        self.store.set(f"counts/{self.worker}", text)

    def counts(self, members: Iterable[int]) -> list[str]:
        """Return what those of these members that have finished have said."""
        told = [key for key in (f"counts/{m}" for m in members) if self.store.check([key])]
        return [self.store.get(key).decode() for key in told]

    # rounds

    def count(self, generation: int, steps: int) -> int:
        """Add steps; return how many all members have counted in this generation."""
        return self.store.add(f"{generation}/steps", steps)

    def open(self, round_: int) -> None:
        """Let every member contribute to a round."""
        self.store.set(f"go/{round_}", "")

    def wait_until_open(self, round_: int) -> None:
        """Wait for a round.

        Raises:
            WorkerLost: if none opens it; every worker's counting thread would by then.
        """
        try:
            self.store.wait([f"go/{round_}"], timedelta(seconds=3 * self.timeout_s))
        except WorkerLost:
            raise
        except RuntimeError as error:
            raise WorkerLost(
                f"worker {self.worker} has waited {3 * self.timeout_s:g} s for round {round_}, "
                "which no worker has opened"
            ) from error

    def commit(self, generation: Generation, what: str) -> bool:
        """Say that this worker has a sum; return whether all have, and none gave up before."""
        if self.store.add(f"{generation.number}/{what}/have", 1) == len(generation.members):
            return self._decide(generation, what, _COMMIT)
        verdict = _verdict(generation, what)
        try:
            self.store.wait([verdict], timedelta(seconds=self.patience_s))
        except RuntimeError:
            return self._decide(generation, what, _ABORT)
        return self.store.get(verdict) == _COMMIT

    def abort(self, generation: Generation, what: str) -> None:
        """Say that this worker gives up."""
        self._decide(generation, what, _ABORT)

    def _decide(self, generation: Generation, what: str, verdict: bytes) -> bool:
        """Write a verdict unless there is one; return whether what stands is a commit."""
        key = _verdict(generation, what)
        return self.store.compare_set(key, "", verdict.decode()) == _COMMIT

    def has_verdict(self, generation: Generation, what: str) -> bool:
        """Whether something has been decided, which can only be an abort while one waits."""
        return self.store.check([_verdict(generation, what)])

    # generations

    def survivors(self, generation: Generation) -> Generation:
        """Return the generation that follows a loss, as the first of the survivors proposes it.

        Raises:
            WorkerLost: if this worker is not in it.
        """
        number = generation.number + 1
        self.store.set(f"{number}/alive/{self.worker}", "")
        key, deadline = f"{number}/members", time.monotonic() + self.patience_s
        while not self.store.check([key]):
            alive = [m for m in generation.members if self._is_there(number, m)]
            dead = [m for m in generation.members if self.store.check([f"dead/{m}"])]
            if set(alive) | set(dead) == set(generation.members) or time.monotonic() > deadline:
                lost = set(generation.members) - (set(alive) - set(dead))
                return self.propose(generation.without(lost))
            time.sleep(_NAP_S)
        return self.agreed(number)

    def _is_there(self, number: int, member: int) -> bool:
        return self.store.check([f"{number}/alive/{member}"])

    def propose(self, generation: Generation) -> Generation:
        """Write down who the members are, unless another has; return what stands."""
        self.store.compare_set(f"{generation.number}/members", "", json.dumps(asdict(generation)))
        return self.agreed(generation.number)

    def agreed(self, number: int) -> Generation:
        """Return a generation that has been proposed.

        Raises:
            WorkerLost: if this worker is not in it.
        """
        generation = Generation(**json.loads(self.store.get(f"{number}/members")))
        if self.worker not in generation.members:
            raise WorkerLost(
                f"worker {self.worker} was silent for so long that the others went on without it "
                f"in round {generation.round}; start it anew to join them"
            )
        return generation

    # newcomers

    def ask_to_join(self) -> int:
        """Ask the members to let a worker in; return how many have asked so far."""
        return self.store.add("newcomers", 1)

    def newcomers(self) -> int:
        """Return how many have asked so far."""
        return self.store.add("newcomers", 0)

    def admit(self, generation: Generation) -> None:
        """Tell the newcomers of a generation which it is."""
        for worker in generation.fresh:
            self.store.set(f"admitted/{worker}", str(generation.number))

    def wait_to_be_admitted(self) -> Generation:
        """Return the generation that has let this worker in.

        Raises:
            TimeoutError: if none does.
        """
        if not self._come([f"admitted/{self.worker}"], 3 * self.timeout_s):
            raise TimeoutError(
                f"waited {3 * self.timeout_s:g} s to be let in; are the others still training?"
            )
        return self.agreed(int(self.store.get(f"admitted/{self.worker}")))

    # data

    def claim(self, epoch: int, samples: int) -> int:
        """Take the next samples of an epoch; return where in its order they begin."""
        return self.store.add(f"epoch/{epoch}/cursor", samples) - samples

    def tell_trained(self, round_: int, claims: str) -> None:
        """Say which samples this worker's contribution to a round has been trained on."""
        self.store.set(f"trained/{round_}/{self.worker}", claims)
        # all have read it before they answer the round after it
        self.store.delete_key(f"trained/{round_ - 2}/{self.worker}")

    def trained(self, round_: int, members: Iterable[int]) -> list[str]:
        """Return what these members have said."""
        return [self.store.get(f"trained/{round_}/{m}").decode() for m in members]


def _verdict(generation: Generation, what: str) -> str:
    return f"{generation.number}/{what}/verdict"

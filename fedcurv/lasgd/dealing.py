"""What one worker's loader deals: from which samples, and what of them a saved state holds."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import Dataset

from fedcurv.lasgd import agreement
from fedcurv.lasgd.control import Control
from fedcurv.lasgd.data import Claim, Deck, SharedLoader, Trained, check_loader
from fedcurv.lasgd.shared import Shared, end_if


class Dealing:
    """A worker's one loader, and the samples that are not in the common model yet.

    Args:
        shared: of this worker.
        control: a view of the store that nobody waits with.
        trained: what has landed.

    Attributes:
        saved: what of the data a saved state held, to go on from.
    """

    def __init__(self, shared: Shared, control: Control, trained: Trained) -> None:
        self._shared, self._control, self._trained = shared, control, trained
        self._deck: Deck | None = None
        self.saved: dict[str, Any] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether there is a loader."""
        return self._deck is not None

    def loader(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        shuffle: bool,
        seed: int,
        options: Mapping[str, Any],
        require_within: Callable[[], None],
    ) -> SharedLoader:
        """Return batches that no other worker gets; see ``LASGD.loader``."""
        check_loader(dataset, batch_size, shuffle, seed, options)
        if self._deck is not None:
            raise RuntimeError("expected one loader, which may be iterated again; got a second")
        self._deck = Deck(
            len(dataset),  # type: ignore[arg-type]  # torch leaves it to the data set
            self._trained,
            shuffle=shuffle,
            seed=seed,
            state=self.saved,
        )
        difference = agreement.difference_of_loaders(self._control, self._deck.description)
        end_if(difference, self._shared, self._control)
        told = (require_within, self._note)
        return SharedLoader(dataset, self._deck, batch_size, self._control, *told, dict(options))

    def state_dict(self) -> dict[str, Any] | None:
        """Return what of each epoch has not landed; None if it is not known."""
        return self.saved if self._deck is None else self._deck.state_dict()

    def _note(self, claim: Claim) -> None:
        with self._shared.changed:
            self._shared.untrained.append(claim)
            self._shared.counters.samples += claim.end - claim.begin

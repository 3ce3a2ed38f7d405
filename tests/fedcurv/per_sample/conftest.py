import pytest

from fedcurv.per_sample.replay import Replay
from fedcurv.per_sample.samples import WholeModel


@pytest.fixture
def replayed(monkeypatch):
    """Parameters for which a module was run once more: (the module, its own name of it)."""
    seen = set()
    original = Replay.add_squares

    def spy(self, call, totals):
        seen.update((self._name, name.removeprefix(WholeModel.PREFIX)) for name in totals)
        return original(self, call, totals)

    monkeypatch.setattr(Replay, "add_squares", spy)
    return seen

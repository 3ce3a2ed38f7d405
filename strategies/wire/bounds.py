"""How much a client's statistics may be, as a message says it.

To a client, ``fedcurv.bound``: a ConfigRecord with the clip and the distance of
``fedcurv.bounded.Bound``. Where it is missing statistics are not bounded.
"""

import math

from flwr.app import ConfigRecord, RecordDict

from fedcurv.bounded import Bound

BOUND = "fedcurv.bound"


def pack_bound(bound: Bound) -> ConfigRecord:
    """Return the record that carries a bound."""
    return ConfigRecord({"clip": bound.clip, "distance": bound.distance})


def unpack_bound(content: RecordDict) -> Bound | None:
    """Return the bound in a message, or None.

    Raises:
        ValueError: if it is none that a server sends.
    """
    config = content.config_records.get(BOUND)
    if config is None:
        return None
    return Bound(_told(config, "clip"), _told(config, "distance"))


def _told(config: ConfigRecord, name: str) -> float:
    value = config.get(name)
    if not isinstance(value, float) or not 0.0 < value < math.inf:
        raise ValueError(
            f"expected a number > 0 for {name!r} in the record {BOUND!r}, got {value!r:.60}; let "
            "server and clients have the same version of fedcurv"
        )
    return value

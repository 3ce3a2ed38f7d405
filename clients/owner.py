"""Permissions of a device's owner, in its environment or its SuperNode's configuration."""

import os
from collections.abc import Mapping
from typing import Any

_YES = ("1", "true", "yes")


def owner_allows(node_config: Mapping[str, Any], key: str, variable: str) -> bool:
    """Return whether a device's owner has said yes; nobody else can, and silence is a no.

    Args:
        node_config: of the SuperNode.
        key: in it.
        variable: of the environment, where ``1``, ``true`` or ``yes`` says so too.
    """
    words = (os.environ.get(variable, ""), node_config.get(key, ""))
    return any(str(word).lower() in _YES for word in words)

"""Ids of clients: which a node has, and how it tells them."""

from flwr.app import ConfigRecord, Context, RecordDict

CONFIG = "fedcurv"

# of a client's id: it is sorted by, and stands in logs and names of files
_LONGEST_ID = 200


def client_id_of(context: Context) -> str:
    """Return the node's name that outlasts runs and restarts, if its owner gave it one.

    That is ``client-id`` of the node's configuration, else ``partition-id``, which Flower's
    simulations set and deployments usually do, else Flower's own node id, which is new at each
    start of a node that does not authenticate itself.
    """
    for key in ("client-id", "partition-id"):
        if key in context.node_config:
            return str(context.node_config[key])
    return f"node-{context.node_id}"


def client_id_order(client_id: str) -> tuple[int, int, str]:
    """Return a sort key, which no two ids share: numbers first and by value, then names."""
    is_number = client_id.isdecimal()
    return (0, int(client_id), client_id) if is_number else (1, 0, client_id)


def pack_client_id(context: Context) -> ConfigRecord:
    """Return the record in which a node tells its id."""
    return ConfigRecord({"client-id": client_id_of(context)})


def unpack_client_id(content: RecordDict) -> str | None:
    """Return the id that a node told, or None; one of over 200 or unprintable signs is none."""
    record = content.config_records.get(CONFIG)
    client_id = record.get("client-id") if record is not None else None
    if not isinstance(client_id, str) or len(client_id) > _LONGEST_ID:
        return None
    return client_id if client_id.isprintable() else None

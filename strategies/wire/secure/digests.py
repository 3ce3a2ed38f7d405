"""Hashes of what a message to train tells the app, on which the masks of a secure sum depend."""

import hashlib
import json

from flwr.app import ArrayRecord, Message, RecordDict

from fedcurv.strategies.wire.secure.stages import SECURE


def digest_of_arrays(content: RecordDict) -> bytes:
    """Return a hash of all arrays in a message, with their names, types and shapes."""
    hashed = hashlib.sha256()
    for key in sorted(content.array_records):
        record: ArrayRecord = content.array_records[key]
        for name, array in record.items():
            head = [key, name, array.dtype, list(array.shape), array.stype, len(array.data)]
            hashed.update(json.dumps(head).encode())
            hashed.update(array.data)
    return hashed.digest()


def digest_of_message(message: Message, arrays: bytes | None = None) -> bytes:
    """Return a hash of what a message tells the app: its type, its group, all records but SECURE.

    Args:
        message: to train.
        arrays: digest of its arrays, where it is known; they are long.
    """
    content, metadata = message.content, message.metadata
    records = [
        [
            key,
            type(record).__name__,
            [] if isinstance(record, ArrayRecord) else list(record.items()),
        ]
        for key, record in content.items()
        if key != SECURE
    ]
    arrays = digest_of_arrays(content) if arrays is None else arrays
    told = [metadata.message_type, metadata.group_id or "", arrays.hex(), records]
    return hashlib.sha256(json.dumps(told, default=_bytes_as_text).encode()).digest()


def _bytes_as_text(value: bytes) -> dict[str, str]:
    """Return bytes as what no other value of a record is in JSON."""
    return {"bytes": value.hex()}

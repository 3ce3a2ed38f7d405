"""Damaged files: random bytes, and files with bytes changed, cut out, doubled or exchanged.

Archives are also damaged inside, with checksums that are right again, so that readers get beyond
the archive's own checks.
"""

import io
import random
import warnings
import zipfile
from collections.abc import Iterator

EDGES = [0, 1, 0x7F, 0x80, 0xFF]


def mutations(good: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """Yield inputs, the same for the same seed."""
    chance = random.Random(seed)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for index in range(number):
        if index % 20 == 0:
            yield chance.randbytes(chance.randrange(200))
        elif index % 2:
            yield damaged(good, chance)
        else:
            yield zipped(members, chance)


def damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        if not changed:
            break
        at = chance.randrange(len(changed))
        match chance.randrange(6):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.choice(EDGES)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + chance.randrange(1, 9)]
            case 4:
                changed[at:at] = changed[at : at + chance.randrange(1, 64)]
            case _:
                changed[at : at + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"9999", b"[[[["])
    return bytes(changed)


def zipped(members: dict[str, bytes], chance: random.Random) -> bytes:
    """Return an archive of which one member is damaged, renamed, doubled or left out."""
    file, victim = io.BytesIO(), chance.choice(list(members))
    kind = chance.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", kind) as archive:
        warnings.simplefilter("ignore")
        for name, data in members.items():
            if name != victim:
                archive.writestr(name, data)
                continue
            match chance.randrange(8):
                case 0:
                    pass
                case 1:
                    archive.writestr(chance.choice(["x", "y/", "header.npy", "é/../.npy"]), data)
                case 2:
                    archive.writestr(name, data)
                    archive.writestr(name, data)
                case _:
                    archive.writestr(name, damaged(data, chance))
    return file.getvalue()

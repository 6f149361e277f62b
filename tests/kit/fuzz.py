"""Messages that are nearly valid."""

from __future__ import annotations

import random


def mutated(valid: list[bytes], rng: random.Random) -> bytes:
    """One of these messages with up to four bytes or stretches changed, put in or left out."""
    data = bytearray(rng.choice(valid))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        change = rng.randrange(4)
        if change == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[place:place] = rng.randbytes(rng.randint(1, 8))
        elif change == 2:
            del data[place : place + rng.randint(1, 8)]
        else:
            data[place : place + 2] = rng.choice((b"\xff\xff", b"\x00\x00", b"\x80\x80"))
    return bytes(data)

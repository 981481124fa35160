"""Secrets in n parts of which any t give them back and t - 1 say nothing (Shamir, CACM 1979)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

#: Gives so many random bytes: ``os.urandom``, or a seeded generator's in a simulation.
Draw = Callable[[int], bytes]

#: A Mersenne prime above all secrets of 32 bytes, and the bytes of a number below it.
PRIME = 2**521 - 1
WIDTH = 66


class Share(NamedTuple):
    """A point of the polynomial: its place, from 1, and its value below :data:`PRIME`."""

    place: int
    value: int


def split(secret: bytes, threshold: int, count: int, draw: Draw) -> list[Share]:
    """``count`` shares of a secret of up to 64 bytes, any ``threshold`` of which give it back.

    Raises
    ------
    ValueError
        If the numbers make no sense.
    """
    if not 1 <= threshold <= count or len(secret) > 64:
        raise ValueError(f"{threshold} of {count} shares of a secret of {len(secret)} bytes")
    coefficients = [int.from_bytes(secret, "big"), *(_below_prime(draw) for _ in range(threshold - 1))]
    return [Share(place, _value(coefficients, place)) for place in range(1, count + 1)]


def join(shares: Sequence[Share], length: int) -> bytes:
    """The secret of ``length`` bytes; from fewer shares than its threshold, or wrong ones, something else.

    Raises
    ------
    ValueError
        If two shares have one place, or the result is longer than ``length``, which proves a share wrong.
    """
    if len({share.place for share in shares}) != len(shares):
        raise ValueError("two shares with the same place")
    total = 0
    for share in shares:
        above, below = 1, 1
        for other in shares:
            if other.place != share.place:
                above = above * other.place % PRIME
                below = below * (other.place - share.place) % PRIME
        total = (total + share.value * above * pow(below, -1, PRIME)) % PRIME
    if total.bit_length() > 8 * length:
        raise ValueError("the shares do not belong together")
    return total.to_bytes(length, "big")


def _value(coefficients: Sequence[int], place: int) -> int:
    found = 0
    for coefficient in reversed(coefficients):
        found = (found * place + coefficient) % PRIME
    return found


def _below_prime(draw: Draw) -> int:
    """Uniform below 2^521 - 1, by rejection of the one number too many."""
    while True:
        number = int.from_bytes(draw(WIDTH), "big") >> (8 * WIDTH - 521)
        if number < PRIME:
            return number

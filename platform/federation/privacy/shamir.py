"""Secret sharing: any t of n shares give a secret back, and t - 1 reveal nothing (Shamir, CACM 1979)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

#: Returns the given number of random bytes: ``os.urandom``, or a seeded generator's in a simulation.
Draw = Callable[[int], bytes]

#: A Mersenne prime above all secrets of 32 bytes, and the bytes of a number below it.
PRIME = 2**521 - 1
WIDTH = 66


class Share(NamedTuple):
    """A point of the polynomial: ``x``, from 1, and ``value`` below :data:`PRIME`."""

    x: int
    value: int


def split(secret: bytes, threshold: int, count: int, draw: Draw) -> list[Share]:
    """``count`` shares of a secret of up to 64 bytes; any ``threshold`` of them give it back.

    Raises
    ------
    ValueError
        If the threshold, count or length is out of range.
    """
    if not 1 <= threshold <= count or len(secret) > 64:
        raise ValueError(f"{threshold} of {count} shares of a secret of {len(secret)} bytes")
    coefficients = [int.from_bytes(secret, "big"), *(_below_prime(draw) for _ in range(threshold - 1))]
    return [Share(index, _value(coefficients, index)) for index in range(1, count + 1)]


def join(shares: Sequence[Share], length: int) -> bytes:
    """The secret of ``length`` bytes; fewer shares than its threshold, or wrong ones, give another value.

    Raises
    ------
    ValueError
        If two shares have the same index, or the result is longer than ``length``, which shows that a share is wrong.
    """
    if len({share.x for share in shares}) != len(shares):
        raise ValueError("two shares with the same index")
    total = 0
    for share in shares:
        above, below = 1, 1
        for other in shares:
            if other.x != share.x:
                above = above * other.x % PRIME
                below = below * (other.x - share.x) % PRIME
        total = (total + share.value * above * pow(below, -1, PRIME)) % PRIME
    if total.bit_length() > 8 * length:
        raise ValueError("the shares do not belong together")
    return total.to_bytes(length, "big")


def _value(coefficients: Sequence[int], index: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * index + coefficient) % PRIME
    return value


def _below_prime(draw: Draw) -> int:
    """Uniform below 2^521 - 1, by rejection."""
    while True:
        number = int.from_bytes(draw(WIDTH), "big") >> (8 * WIDTH - 521)
        if number < PRIME:
            return number

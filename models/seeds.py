"""Seeds for torch, derived from numbers that name a unit of work."""

import numpy as np


def torch_seed(*numbers: int, spawn_key: tuple[int, ...] = ()) -> int:
    """A seed of 63 bits that is a function of these numbers, for example (seed, repeat, fold).

    ``spawn_key`` separates streams of the same unit, for example those of several workers.

    >>> torch_seed(42, 0, 1) == torch_seed(42, 1, 0)
    False
    """
    sequence = np.random.SeedSequence(list(numbers), spawn_key=spawn_key)
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))  # torch takes signed 64 bit

"""Seeds are functions of their numbers; stored results depend on their values."""

import numpy as np

from equipoise.models.seeds import torch_seed


def test_values_do_not_change() -> None:
    assert torch_seed(42, 0, 1) == 8008285204471158970
    assert torch_seed(42, 3, spawn_key=(1,)) == 1697046432044483103


def test_seeds_fit_torch_and_differ_between_units() -> None:
    seeds = {
        torch_seed(7, repeat, fold, spawn_key=key)
        for repeat in range(9)
        for fold in range(9)
        for key in ((), (1,))
    }
    assert len(seeds) == 162
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Half of the 64 bits that NumPy gives: nothing but the last one is lost.
    state = np.random.SeedSequence([7, 0, 0]).generate_state(1, np.uint64)[0]
    assert torch_seed(7, 0, 0) == int(state) // 2

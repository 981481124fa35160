"""Where noise comes from."""

from __future__ import annotations

import hashlib

import numpy as np


def noise_source(*entropy: int, data: np.ndarray) -> np.random.Generator:
    """Random numbers for the noise on ``data``: a function of a secret seed and of these exact values.

    The same values get the same noise, so that a resumed federation repeats itself and reveals nothing new. Any other
    values get independent noise. If noise depended on the seed alone, two runs of a study, with and without a patient,
    would differ by exactly what the patient adds.

    Parameters
    ----------
    entropy
        The seed, which in a real federation is a secret of whoever adds the noise, and what tells streams apart.
    data
        The values that the noise hides.
    """
    digest = hashlib.blake2b(np.ascontiguousarray(data).tobytes(), digest_size=16).digest()
    return np.random.default_rng(np.random.SeedSequence([*entropy, int.from_bytes(digest, "big")]))

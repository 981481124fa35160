"""Mutations, mutational burden and copy number of one patient."""

import numpy as np

from equipoise.datasets.synthetic.latents import Latents

#: Mutation frequency in stable tumours, under MSI and under HRD.
MUTATIONS: dict[str, tuple[float, float, float]] = {
    "APC": (0.78, 0.45, 0.60),
    "TP53": (0.62, 0.25, 0.85),
    "KRAS": (0.43, 0.28, 0.30),
    "BRAF": (0.05, 0.55, 0.05),
    "RNF43": (0.03, 0.55, 0.03),
    "ACVR2A": (0.02, 0.60, 0.02),
    "TGFBR2": (0.03, 0.55, 0.03),
    "BRCA2": (0.02, 0.10, 0.25),
    "BRCA1": (0.02, 0.06, 0.22),
    "PALB2": (0.01, 0.05, 0.08),
    "ATM": (0.05, 0.18, 0.10),
    "PIK3CA": (0.17, 0.35, 0.14),
    "SMAD4": (0.13, 0.10, 0.12),
    "FBXW7": (0.13, 0.22, 0.12),
    "PTEN": (0.05, 0.28, 0.10),
    "ARID1A": (0.06, 0.40, 0.08),
    "MSH3": (0.02, 0.42, 0.02),
    "MSH6": (0.02, 0.38, 0.03),
    "B2M": (0.01, 0.28, 0.02),
    "CTNNB1": (0.05, 0.14, 0.05),
}

#: Mutations per megabase: stable, MSI, POLE-like (2 % of stable tumours).
_RATE, _RATE_MSI, _RATE_POLE = 5, 32, 120
_EXOME_MB = 38

_ACROCENTRIC = (13, 14, 15, 21, 22)
#: Autosomal arms; five chromosomes have no short arm to speak of.
ARMS = tuple(f"{c}{arm}" for c in range(1, 23) for arm in "pq" if arm == "q" or c not in _ACROCENTRIC)
_GAINED = ("7p", "7q", "8q", "13q", "20p", "20q")
_LOST = ("1p", "5q", "8p", "17p", "18p", "18q")

MUTATION_COLUMNS = (*MUTATIONS, "TMB")


def draw_mutations(rng: np.random.Generator, latents: Latents) -> np.ndarray:
    """Mutation status of every gene (0 or 1) and the burden per megabase, float32 ``[genes + 1]``."""
    column = 1 if latents.msi else 2 if latents.hrd else 0
    chance = np.array([row[column] for row in MUTATIONS.values()])
    mutated = rng.random(len(chance)) < chance
    pole = rng.random() < 0.02
    rate = _RATE_MSI if latents.msi else _RATE_POLE if pole else _RATE
    rate *= np.exp(rng.normal(0, 0.6))
    burden = rng.poisson(_EXOME_MB * rate) / _EXOME_MB
    return np.append(mutated, burden).astype(np.float32)


def draw_arms(rng: np.random.Generator, latents: Latents, seen: dict[str, float]) -> np.ndarray:
    """Mean log2 ratio of every chromosome arm, float32 ``[arms]``."""
    rate = 0.22 + 0.07 * seen["heterogeneity"] + 0.08 * latents.hrd - 0.10 * latents.msi + rng.normal(0, 0.05)
    rate = float(np.clip(rate, 0.02, 0.7))
    lean = np.array([(arm in _GAINED) - (arm in _LOST) for arm in ARMS])
    event = rng.random(len(ARMS)) < np.minimum(rate * np.where(lean, 1.5, 1.0), 1)
    gain = rng.random(len(ARMS)) < 1 / (1 + np.exp(-1.6 * lean))
    values = event * np.where(gain, 0.45, -0.45) + rng.normal(0, 0.06, len(ARMS))
    return values.astype(np.float32)

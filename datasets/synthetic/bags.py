"""Feature bags without pixels, for benchmarks over thousands of patients.

Each tile is ten numbers of tissue, pushed through a fixed random network of the shape of an encoder's last layers,
shifted by the site, blurred by noise. Files have STAMP's layout (``feats``, ``coords`` in um).
"""

from functools import cache
from pathlib import Path

import numpy as np

from equipoise.datasets.synthetic.fields import noise
from equipoise.datasets.synthetic.morphology import Morphology
from equipoise.datasets.synthetic.seeds import WHOLE_COHORT, Purpose, stream

DIM = 384
TILE_UM = 112.0
_TRAITS, _HIDDEN = 10, 64
_FEWEST, _MOST = 48, 200
_SITE_SD, _NOISE_SD = 0.25, 0.6


def draw_bag(
    rng: np.random.Generator, morphology: Morphology, seed: int, cohort: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features and positions of one patient's tiles.

    Parameters
    ----------
    seed, cohort
        Whose site shift it is: the cohort's number.

    Returns
    -------
    features, coords
        float16 ``[n, 384]`` and float32 ``[n, 2]`` (x, y of the tile's corner in um), 48 to 200 tiles.
    """
    count = int(rng.integers(_FEWEST, _MOST + 1))
    side = int(np.ceil(np.sqrt(count)))
    traits = _tile_traits(rng, morphology, side)[:count]
    inner, bias, outer = _network()
    features = np.tanh(traits @ inner + bias) @ outer
    site = stream(seed, cohort, WHOLE_COHORT, Purpose.ENCODER)
    features = features * (1 + site.normal(0, _SITE_SD, DIM)) + site.normal(0, _SITE_SD, DIM)
    features += rng.normal(0, _NOISE_SD, features.shape)
    y, x = np.divmod(np.arange(count), side)
    return features.astype(np.float16), (np.stack([x, y], axis=1) * TILE_UM).astype(np.float32)


def write_bag(path: Path, features: np.ndarray, coords: np.ndarray) -> None:
    """Write one ``.h5`` file in STAMP's layout."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("feats", data=features)
        file.create_dataset("coords", data=coords)
        file.attrs["extractor"] = "equipoise-synthetic-10-64-384"
        file.attrs["unit"] = "um"
        file.attrs["tile_size_um"] = TILE_UM
        file.attrs["tile_size_px"] = 224
        file.attrs["feat_type"] = "tile"
        file.attrs["notice"] = "SYNTHETIC: no patient, no slide"


@cache
def _network() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of the encoder: random, and the same for every seed."""
    rng = stream(0, 0, 0, Purpose.ENCODER)
    inner = rng.normal(0, 1.5 / np.sqrt(_TRAITS), (_TRAITS, _HIDDEN))
    return inner, rng.normal(0, 0.5, _HIDDEN), rng.normal(0, 1.5 / np.sqrt(_HIDDEN), (_HIDDEN, DIM))


def _tile_traits(rng: np.random.Generator, m: Morphology, side: int) -> np.ndarray:
    """Ten standardised traits of each tile of a square, ``[side * side, 10]``: four shares of tissue, TILs, stromal
    lymphocytes, mitoses, grade, gland size, hyperchromasia."""
    n = side * side
    het = m.hetero * noise(rng, side, 4.0).ravel()
    bed = noise(rng, side, 3.5).ravel() + 0.4 * rng.standard_normal(n)
    inside = (bed > np.quantile(bed, 1 - m.tumour)).astype(float)
    stroma = np.clip(m.stroma + 0.10 * rng.standard_normal(n), 0.02, 0.95)
    mucin = (rng.random(n) < m.mucin) * rng.uniform(0.2, 0.8, n)
    necrosis = (rng.random(n) < m.necrosis) * rng.uniform(0.1, 0.6, n)
    rest = np.clip(1 - mucin - necrosis, 0.05, 1)
    epithelium = inside * rest * (1 - stroma)
    regional = np.exp(np.clip(0.8 * het, -1.5, 1.5))
    til_epi = rng.poisson(epithelium * np.minimum(m.til_epi * regional, 0.5) * 120) / 120
    til_str = rng.poisson((1 - epithelium) * np.minimum(m.til_str * regional, 0.95) * 120) / 120
    mitoses = rng.poisson(epithelium * m.mitosis * 120) / 120
    grade = np.clip(m.grade + 0.30 * het + 0.10 * rng.standard_normal(n), 0, 1)
    gland = np.log(m.gland_um / 130) + 0.05 * rng.standard_normal(n)
    chromatin = m.hyperchrom - 1 + 0.05 * rng.standard_normal(n)
    # Rough means and spreads over patients: fixed, so that a bag does not depend on others.
    return np.stack(
        [
            (epithelium - 0.40) / 0.25,
            (stroma - 0.35) / 0.20,
            (inside * mucin - 0.03) / 0.12,
            (inside * necrosis - 0.02) / 0.10,
            (np.sqrt(til_epi) - 0.15) / 0.12,
            (np.sqrt(til_str) - 0.30) / 0.15,
            (np.sqrt(mitoses) - 0.06) / 0.06,
            (grade - 0.42) / 0.25,
            gland / 0.15,
            chromatin / 0.12,
        ],
        axis=1,
    )

from dataclasses import replace

import numpy as np
import pytest

from equipoise.datasets.synthetic.cancers import CANCERS
from equipoise.datasets.synthetic.cells import place_cells
from equipoise.datasets.synthetic.fields import enlarge, hex_grid, noise, smoothstep
from equipoise.datasets.synthetic.layout import MASK_CLASSES, draw_layout, stain_layers
from equipoise.datasets.synthetic.morphology import Morphology
from equipoise.datasets.synthetic.stamps import Kind

PLAIN = Morphology(
    stroma=0.3,
    grade=0.4,
    til_epi=0.03,
    til_str=0.1,
    aggregates=1.0,
    mucin=0.05,
    necrosis=0.05,
    mitosis=0.01,
    apoptosis=0.01,
    tumour=0.65,
    gland_um=140,
    epi_um=21,
    cell=1.0,
    hyperchrom=1.0,
    hetero=0.3,
)


def _shares(seed: int = 0, **changes: float) -> dict[str, float]:
    """Compartments as shares of the tissue, cells per mm2, over two slides."""
    totals: dict[str, float] = {}
    for k in range(2):
        morphology = replace(PLAIN, **changes)
        layout = draw_layout(np.random.default_rng([seed, k]), 700, morphology, CANCERS["crc"])
        cells = place_cells(np.random.default_rng([seed, k, 1]), layout, morphology)
        mask = layout.mask()
        tissue = (mask > 0).sum()
        for value, name in enumerate(MASK_CLASSES):
            totals[name] = totals.get(name, 0) + (mask == value).sum() / tissue / 2
        for kind in Kind:
            totals[kind.name] = totals.get(kind.name, 0) + (cells.kind == kind).sum() / (tissue * 64e-6) / 2
    return totals


def test_noise_is_standard_normal_at_any_scale():
    rng = np.random.default_rng(0)
    for cell in (3.0, 9.3, 40.0):
        field = np.stack([noise(rng, 256, cell) for _ in range(12)])
        assert field.dtype == np.float32
        assert field.shape == (12, 256, 256)
        assert field.std() == pytest.approx(1, abs=0.08)
        assert abs(field.mean()) < 0.15


def test_hex_grid_covers_the_extent_at_its_density():
    grid = hex_grid(np.random.default_rng(0), 1000, 10, 0.3)
    inside = grid[((grid >= 0) & (grid < 1000)).all(axis=1)]
    assert len(inside) == pytest.approx(1000**2 / (0.87 * 10**2), rel=0.03)
    assert smoothstep(np.array([-1, 0.5, 2], np.float32), 0, 1).tolist() == [0, 0.5, 1]
    assert smoothstep(np.array([-1, 0.5, 2], np.float32), 1, 0).tolist() == [1, 0.5, 0]


def test_compartments_partition_the_tissue():
    layout = draw_layout(np.random.default_rng(3), 700, PLAIN, CANCERS["crc"])
    g, v = layout.glands, layout.vessels
    parts = [layout.stroma, layout.fat, g.epithelium, g.lumen, g.mucin, g.necrosis, v.lumen, v.wall]
    assert min(float(part.min()) for part in parts) > -1e-5
    assert np.abs(np.sum(parts, axis=0) - layout.outline.tissue).max() < 1e-4
    for density in stain_layers(np.random.default_rng(4), layout, PLAIN):
        assert density.dtype == np.uint8
        assert density[layout.outline.tissue == 0].max() == 0  # glass is clear
        assert density[layout.stroma > 0.9].mean() > 3


def test_morphology_shows_in_the_layout():
    base = _shares()
    assert _shares(stroma=0.7)["stroma"] > base["stroma"] + 0.1
    assert _shares(mucin=0.5)["mucin"] > base["mucin"] + 0.02
    assert _shares(necrosis=0.4)["necrosis"] > base["necrosis"] + 0.02
    assert _shares(grade=0.95)["EPI2"] > 3 * base["EPI2"] + 100
    assert _shares(til_epi=0.3, til_str=0.4)["LYMPHOCYTE"] > 1.6 * base["LYMPHOCYTE"]
    assert _shares(mitosis=0.08)["MITOSIS"] > 3 * base["MITOSIS"]
    assert _shares(aggregates=10.0)["lymphoid aggregate"] > base["lymphoid aggregate"] + 0.02


def test_tissue_has_vessels_red_cells_and_sometimes_fat():
    shares = [_shares(seed) for seed in range(6)]
    assert np.mean([s["vessel"] for s in shares]) > 0.003
    assert np.mean([s["RED_CELL"] for s in shares]) > 20
    fat = [s["fat"] for s in shares]
    assert max(fat) > 0.01
    assert min(fat) < max(fat) / 2


def test_enlarging_keeps_smooth_fields():
    field = noise(np.random.default_rng(0), 64, 16.0)
    assert np.abs(enlarge(field, 4)[2::4, 2::4] - field)[2:-2, 2:-2].max() < 0.1

"""Pixel sizes and colours of cohorts: planted shifts are said, cohorts without one are not named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from equipoise.platform.report.cohort_drift import drift_sentences, mean_density, stain_shift
from equipoise.platform.report.run_files import RunFiles


def run_of(folder: Path, mpp: float = 0.5, pink: int = 0) -> RunFiles:
    """Two development cohorts and an external one, eight slides each, with thumbnails of one colour."""
    rng = np.random.default_rng(3)
    (folder / "qc").mkdir(parents=True)
    rows = []
    for cohort, role in (("A", "develop"), ("B", "develop"), ("X", "external")):
        for i in range(8):
            slide = f"{cohort}{i}"
            rows.append({"slide": slide, "patient": slide, "cohort": cohort, "role": role, "status": "ok",
                         "mpp": mpp if cohort == "X" else 0.5})  # fmt: skip
            colour = np.array([214, 150, 196]) + rng.normal(0, 4, 3)
            pixels = np.full((120, 160, 3), 250.0)
            pixels[30:90, 40:120] = colour - (np.array([0, pink, 0]) if cohort == "X" else 0)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                folder / "qc" / f"{slide}.jpg", quality=95
            )
    table = pd.DataFrame(rows)
    run = RunFiles(folder)
    run.__dict__ |= {"patients": table.assign(site="s"), "slides": table}
    return run


def test_cohorts_that_are_alike_say_nothing(tmp_path: Path) -> None:
    assert drift_sentences(run_of(tmp_path)) == []


@pytest.mark.parametrize(("mpp", "how"), [(0.25, "finer"), (0.7, "coarser"), (0.52, "")])
def test_another_pixel_size_is_said_with_both_numbers(tmp_path: Path, mpp: float, how: str) -> None:
    found = drift_sentences(run_of(tmp_path, mpp=mpp))
    if not how:
        assert found == []
        return
    (sentence,) = found
    assert sentence.startswith(f"X was scanned {how} than the development cohorts: {mpp:.2f} µm per pixel")
    assert "against 0.50" in sentence


def test_another_stain_is_said(tmp_path: Path) -> None:
    (sentence,) = drift_sentences(run_of(tmp_path, pink=60))
    assert sentence.startswith(
        "The tissue of X has another colour than that of the development cohorts: 8 thumbnails"
    )


def test_the_density_of_a_known_colour(tmp_path: Path) -> None:
    pixels = np.full((100, 100, 3), 255, np.uint8)
    pixels[:, :50] = (128, 64, 32)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = -np.log10(np.array([128, 64, 32]) / 255)
    assert mean_density(tmp_path / "a.png") == pytest.approx(expected, abs=1e-12)
    Image.fromarray(np.full((50, 50, 3), 250, np.uint8)).save(tmp_path / "empty.png")
    assert np.isnan(mean_density(tmp_path / "empty.png")).all()


def test_the_shift_counts_standard_deviations_to_the_nearest_cohort() -> None:
    # Five slides at ±1 and 0 around 0: pooled standard deviation 1 in every channel.
    spread = np.array([-1.0, -1.0, 0.0, 1.0, 1.0])
    near, far = np.repeat(spread[:, None], 3, 1), np.repeat(spread[:, None] + 9, 3, 1)
    shift, sure = stain_shift(near + 4.0, [near, far])
    assert (shift, sure) == (pytest.approx(4.0), True)
    assert stain_shift(near + 1.5, [near])[1] is False  # 1.5 deviations are 2.4 standard errors
    assert np.isnan(stain_shift(near[:4], [near])[0])

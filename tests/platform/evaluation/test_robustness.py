"""Robustness of embeddings across centres: closed forms, brute force, numbers of the package croma, coverage."""

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.robustness import (
    NEIGHBOURS,
    Neighbourhood,
    margins,
    read_robustness,
    robustness,
    robustness_index,
    vote_accuracy,
    write_robustness,
)


def drawn(n: int, seed: int, of_class: float = 1.2, of_centre: float = 0.8) -> Neighbourhood:
    rng = np.random.default_rng(seed)
    label, centre = rng.integers(0, 3, n), rng.integers(0, 4, n)
    x = rng.normal(size=(n, 8))
    x[:, 0] += label * of_class
    x[:, 1] += centre * of_centre
    return Neighbourhood.of([f"p{i:03d}" for i in range(n)], x, label, centre)


def brute_force(near: Neighbourhood, k: int, without: int = -1) -> float:
    so = os = 0
    for i in range(len(near.label)):
        others = [j for j in np.argsort(near.distance[i], kind="stable") if j not in (i, without)]
        for j in others[:k] if i != without else []:
            same, here = near.label[i] == near.label[j], near.centre[i] == near.centre[j]
            so, os = so + (same and not here), os + (here and not same)
    return so / (so + os)


def test_index_and_margin_are_those_of_croma() -> None:
    """croma 1.0.1 on the same 90 points: RI.compute_curve and CRoMa.compute, all rows."""
    near = drawn(90, 5)
    for k, value in ((5, 0.6538461538461539), (11, 0.6396396396396397), (21, 0.6485549132947976)):
        assert robustness_index(near, k).value == pytest.approx(value, abs=1e-12)
    assert np.median(margins(near)) == pytest.approx(0.10054581784600641, abs=1e-12)
    accuracies = [vote_accuracy(near, k) for k in NEIGHBOURS]
    assert accuracies == pytest.approx([0.5137844611528822, 0.4616750208855472, 0.48433583959899745])


def test_embeddings_of_class_alone_and_of_centre_alone() -> None:
    label, centre = np.repeat([0, 1, 2], 20), np.tile([0, 1, 2, 3], 15)
    jitter = 0.01 * np.random.default_rng(0).normal(size=(60, 3))
    names = np.arange(60).astype(str)
    classes = Neighbourhood.of(names, np.eye(3)[label] + jitter, label, centre)
    places = Neighbourhood.of(
        names, np.eye(4)[centre][:, :3] - np.eye(4)[centre][:, 3:] + jitter, label, centre
    )
    assert robustness_index(classes, 5).value == 1
    assert robustness_index(places, 5).value == 0
    assert np.nanmin(margins(classes)) > 0.9
    assert np.nanmax(margins(places)) < -0.9


def test_leaving_a_patient_out_is_what_it_says() -> None:
    near = drawn(30, 1)
    found = robustness_index(near, 5)
    assert found.value == pytest.approx(brute_force(near, 5))
    np.testing.assert_allclose(found.without, [brute_force(near, 5, j) for j in range(30)])


def test_random_embeddings_are_at_chance() -> None:
    found = [robustness_index(drawn(120, seed, 0, 0), 11) for seed in range(40)]
    gap = np.array([one.value - one.chance for one in found])
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5
    assert np.mean([one.chance for one in found]) == pytest.approx(
        0.6, abs=0.02
    )  # (1/3 3/4) / (1/3 3/4 + 2/3 1/4)


def tables(near: Neighbourhood, x_seed: int, folds: int = 2) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The points of ``near`` again, as predictions and latents of test patients in folds."""
    rng = np.random.default_rng(x_seed)
    rows, vectors = [], []
    for i, name in enumerate(near.patient):
        key = {"patient": name, "repeat": 0, "fold": i % folds, "role": "test", "task": "T"}
        latent = rng.normal(size=4) + np.r_[near.label[i], near.centre[i] / 2, 0, 0]
        vectors.append(key | {"latent": latent.astype(np.float32)})
        place = {"cohort": f"C{near.centre[i] // 2}", "site": f"S{near.centre[i]}"}
        for k in range(3):
            nothing = {"score": 1 / 3, "time": np.nan, "event": np.nan}
            rows.append(key | place | nothing | {"class": f"c{k}", "target": float(near.label[i] == k)})
    return pd.DataFrame(rows), pd.DataFrame(vectors)


def test_the_interval_is_not_narrower_than_the_spread_over_samples() -> None:
    tried = pd.DataFrame([robustness(*tables(drawn(120, s), s + 1000, folds=1)).iloc[1] for s in range(60)])
    error = (tried["high"] - tried["low"]).mean() / (2 * 1.96)
    assert 1.0 < error / tried["value"].std() < 1.8  # the spread of 60 values is known to 9 %
    assert ((tried["low"] <= tried["value"].mean()) & (tried["value"].mean() <= tried["high"])).mean() > 0.9


def test_table_of_a_run(tmp_path) -> None:
    predictions, latents = tables(drawn(90, 2), 3)
    table = robustness(predictions, latents)
    assert table["centre"].tolist() == ["cohort", "site"]
    assert (table["folds"] == 2).all()
    assert (table["n"] == 90).all()
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    write_robustness(table, tmp_path)
    pd.testing.assert_frame_equal(read_robustness(tmp_path / "robustness.csv"), table)
    # Patients of one place have nothing to be compared with, nor has a handful of them.
    assert not len(robustness(predictions.assign(cohort="C", site="S"), latents))
    few = latents["patient"] < "p008"
    small = robustness(predictions[predictions["patient"] < "p008"], latents[few])
    assert small["value"].isna().all()
    assert small["note"].str.contains("6 are needed").all()
    write_robustness(table.iloc[:0], tmp_path)
    assert not (tmp_path / "robustness.csv").exists()

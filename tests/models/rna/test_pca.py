"""Components of a reference against scikit-learn, and the folder they are kept in."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from equipoise.models.rna.entries import PcaParams
from equipoise.models.rna.pca import TOTAL, Components, PcaEncoder, fit_components

GENES = [f"G{i}" for i in range(12)]


def profiles(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(2.0, 20.0, (n, len(GENES)))).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fit_components(profiles(40), GENES, kind="counts", components=4).save(tmp_path / "pca")
    return tmp_path / "pca"


def encoder(folder: Path) -> PcaEncoder:
    return PcaEncoder(PcaParams(folder=str(folder)))


def log_shares(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * TOTAL)


def test_scores_are_those_of_scikit_learn(folder: Path) -> None:
    reference, new = profiles(40), profiles(7, seed=1)
    theirs = PCA(4, svd_solver="full").fit(log_shares(reference.astype(float)))
    expected = theirs.transform(log_shares(new.astype(float)))
    expected *= np.sign(theirs.components_[np.arange(4), np.abs(theirs.components_).argmax(axis=1)])
    expected /= theirs.transform(log_shares(reference.astype(float)))[:, 0].std(ddof=1)
    ours = encoder(folder).encode(new, GENES, kind="counts")
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_depth_order_of_genes_and_logarithms_change_nothing(folder: Path) -> None:
    new = profiles(5, seed=2)
    expected = encoder(folder).encode(new, GENES, kind="counts")
    turned = [*reversed(GENES), "other"]
    wide = np.concatenate([new[:, ::-1] * 3, np.full((5, 1), 9)], axis=1).astype(np.float32)
    np.testing.assert_allclose(encoder(folder).encode(wide, turned, kind="tpm"), expected, atol=1e-5)
    np.testing.assert_allclose(encoder(folder).encode(np.log1p(new), GENES, kind="log"), expected, atol=1e-5)
    assert encoder(folder).knows(turned).tolist() == [True] * 12 + [False]


def test_a_gap_counts_as_average_and_an_empty_profile_has_no_vector(folder: Path) -> None:
    new = profiles(3, seed=3)
    new[0, 4] = np.nan
    new[1] = 0
    scores = encoder(folder).encode(new, GENES, kind="counts")
    parts = encoder(folder)._parts
    kept = [i for i in range(12) if i != 4]
    centred = log_shares(new[:1, kept].astype(float)) - parts.centre[kept]
    np.testing.assert_allclose(scores[0], (centred @ parts.axes[kept] / parts.unit)[0], atol=1e-5)
    assert np.isnan(scores[1]).all()
    assert np.isfinite(scores[2]).all()


def test_the_identity_is_read_without_building_and_follows_the_numbers(folder: Path, tmp_path: Path) -> None:
    built = encoder(folder)
    identity = PcaEncoder.identify(PcaParams(folder=str(folder)))
    assert (identity.dim, identity.fingerprint) == (built.dim, built.fingerprint) == (4, built.fingerprint)
    for name, seed in (("same", 0), ("other", 1)):
        fit_components(profiles(40, seed), GENES, kind="counts", components=4).save(tmp_path / name)
    assert encoder(tmp_path / "same").fingerprint == built.fingerprint
    assert encoder(tmp_path / "other").fingerprint != built.fingerprint


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*\nname the folder that holds config\.json"):
        encoder(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="exists already"):
        fit_components(profiles(40), GENES, kind="counts", components=4).save(folder)
    with pytest.raises(ValueError, match=r"none of the 2 genes is in the reference: x, y here, G0"):
        encoder(folder).encode(np.ones((1, 2), np.float32), ["x", "y"], kind="counts")
    with pytest.raises(ValueError, match="40 components of 40 samples"):
        fit_components(profiles(40), GENES, kind="counts", components=40)
    Components(tuple(GENES[:5]), np.zeros(6, np.float32), np.zeros((6, 2), np.float32), 1.0).save(
        tmp_path / "odd"
    )
    with pytest.raises(ValueError, match=r"2 of another shape \(centre \[6\] instead of \[5\], axes"):
        encoder(tmp_path / "odd")
    (folder / "config.json").write_text('{"encoder": "other"}')
    with pytest.raises(ValueError, match="not an encoder 'pca' of this version"):
        encoder(folder)

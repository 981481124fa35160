"""The command that pre-trains an encoder: its folder, a second call, and what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from equipoise.datasets.atomic_io import read_json
from equipoise.datasets.omics.single_cell import SingleCells
from equipoise.platform.errors import DataWarning, StudyError
from equipoise.platform.registry import get
from equipoise.platform.run.rna_pretraining import pretrain_encoder, pretraining_params

SETTINGS = [
    "genes=30",
    "genes_per_cell=12",
    "dim=8",
    "layers=1",
    "heads=2",
    "hidden=8",
    "epochs=4",
    "lr=0.01",
]


def cells(synthetic: bool = True) -> SingleCells:
    rng = np.random.default_rng(0)
    rates = np.exp(2 + rng.normal(size=(160, 2)) @ rng.normal(size=(2, 30)))
    values = csr_matrix(rng.poisson(rates).astype(np.float32))
    genes = tuple(f"G{i}" for i in range(30))
    return SingleCells(values, genes, (), np.full(160, -1), synthetic=synthetic)


def test_the_folder_is_an_encoder_and_made_once(tmp_path: Path) -> None:
    params = pretraining_params(SETTINGS, seed=1)
    result = pretrain_encoder(cells(), params, tmp_path / "encoder")
    assert result.new
    assert list(tmp_path.iterdir()) == [tmp_path / "encoder"]  # no checkpoint is left
    entry = get("rna_encoders", "masked_gene")
    encoder = entry.load()(entry.params(folder=str(tmp_path / "encoder")))
    assert encoder.fingerprint == result.fingerprint
    vectors = encoder.encode(cells().values.toarray(), cells().genes, kind="counts", seed=0)
    assert vectors.shape == (160, 8)
    assert np.isfinite(vectors).all()
    record = read_json(tmp_path / "encoder" / "config.json")["pretraining"]
    assert record["cells"] == {"train": 128, "val": 16, "test": 16}
    assert record["test_loss"] < record["test_loss_of_mean"]
    assert record["explained"] == pytest.approx(1 - record["test_loss"] / record["test_loss_of_mean"])
    assert "hidden genes of 16 test cells (SYNTHETIC): mean squared error" in result.text()
    assert result.fields()["synthetic"]

    again = pretrain_encoder(cells(), params, tmp_path / "encoder")
    assert (again.new, again.fingerprint, again.record) == (False, result.fingerprint, record)
    with pytest.raises(StudyError, match=r"the folder holds another encoder.*\n.*seed: 1 → 2"):
        pretrain_encoder(cells(), pretraining_params(SETTINGS, seed=2), tmp_path / "encoder")
    (tmp_path / "other").mkdir()
    with pytest.raises(StudyError, match="holds no encoder"):
        pretrain_encoder(cells(), params, tmp_path / "other")


def test_nothing_learned_is_said_aloud(tmp_path: Path) -> None:
    params = pretraining_params([*SETTINGS, "epochs=1", "lr=1e-9"])
    with pytest.warns(DataWarning, match="the encoder has learned next to nothing"):
        result = pretrain_encoder(cells(synthetic=False), params, tmp_path / "encoder")
    assert "SYNTHETIC" not in result.text()
    assert "synthetic" not in result.fields()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(StudyError, match="--set epoch: .*\n.*the parameters are genes, genes_per_cell"):
        pretraining_params(["epoch=3"])
    assert pretraining_params(["seed=5"], seed=1).seed == 5

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from equipoise.datasets.omics.params import RnaEncoderSource
from equipoise.datasets.omics.single_cell import SingleCells
from equipoise.models.gptomic.mixup import mix, mixed_labels, mixture_weights
from equipoise.models.gptomic.params import AdapterParams
from equipoise.models.gptomic.smoothing import load_adapter
from equipoise.models.rna.pca import fit_components
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.errors import DataWarning, StudyError
from equipoise.platform.run import adaptation
from equipoise.platform.run.adaptation import adapt, adapter_params, encoder_source

GENES = tuple(f"gene{i}" for i in range(30))
TYPES = ("B", "NK", "T")
QUICK = AdapterParams(samples=1500, dim=32, epochs=15, batch=64)


@pytest.fixture(scope="module")
def cells() -> SingleCells:
    """60 cells of each of three types, each with ten genes of its own; sequenced to different depths."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 60)
    rate = 0.2 + 4 * (np.arange(30)[None] // 10 == labels[:, None])
    counts = rng.poisson(rate * rng.lognormal(0, 1, (180, 1))).astype(np.float32)
    counts[:, 0] += 1
    return SingleCells(csr_matrix(counts), GENES, TYPES, labels, ("kind counts",))


@pytest.fixture(scope="module")
def encoder(cells: SingleCells, tmp_path_factory: pytest.TempPathFactory) -> RnaEncoderSource:
    folder = tmp_path_factory.mktemp("encoder") / "pca"
    fit_components(cells.values.toarray(), GENES, kind="counts", components=8).save(folder)
    return RnaEncoderSource(name="pca", params={"folder": str(folder)})


def run(
    cells: SingleCells, encoder: RnaEncoderSource, out: Path, params: AdapterParams = QUICK, seed: int = 1
):
    return adapt(cells, encoder, out, params, seed=seed, options=RayOptions())


def test_composition_is_recovered_and_written_down(cells, encoder, tmp_path, caplog):
    with caplog.at_level("INFO", logger="equipoise"):
        result = run(cells, encoder, tmp_path / "adapter")
    assert "reference kind counts" in caplog.messages
    assert len(caplog.messages) < 10
    record = json.loads((tmp_path / "adapter" / "config.json").read_text())["record"]
    assert result.new
    assert record["r"] > 0.95
    assert min(record["r_of_type"].values()) > 0.9
    assert result.fields() == {
        "out": tmp_path / "adapter",
        "new": True,
        "r": record["r"],
        "type_r": record["type_r"],
    }
    assert "tables: {rna: {encoder: {name: pca" in result.text()
    assert record["not_held_out"] == []

    # The fingerprint in the folder is the encoder's own, and its vectors are what the adapter takes.
    from equipoise.platform.extraction.rna_encoders import load_rna_encoder

    loaded, built = load_adapter(tmp_path / "adapter"), load_rna_encoder(encoder, Path())
    loaded.require_encoder("pca", built.fingerprint)
    equal = cells.with_equal_totals()
    weights = mixture_weights(cells.labels, AdapterParams(samples=300, cells=(100,)), 5)
    vectors = built.encode(mix(equal.values, weights), GENES, kind="tpm", seed=0)
    true = mixed_labels(cells.labels, weights, 3)
    assert np.corrcoef(loaded.fractions(vectors).ravel(), true.ravel())[0, 1] > 0.95


def test_the_same_command_again_trains_nothing_and_another_is_refused(cells, encoder, tmp_path, monkeypatch):
    first = run(cells, encoder, tmp_path / "a")
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    again = run(cells, encoder, tmp_path / "b")
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == before
    assert again.adapter.record == first.adapter.record
    monkeypatch.setattr(adaptation, "encode_profiles", None)
    third = run(cells, encoder, tmp_path / "a")
    assert not third.new
    assert third.fields() == first.fields() | {"new": False}
    others = {
        "seed: 1 → 2": {"seed": 2},
        "params.mixup: 'dirichlet' → 'two_cells'": {
            "params": QUICK.model_copy(update={"mixup": "two_cells"})
        },
        "cells: ": {"cells": cells.subset(np.arange(1, 180))},
    }
    for difference, changed in others.items():
        arguments = {"cells": cells, "params": QUICK, "seed": 1, **changed}
        with pytest.raises(StudyError, match="holds another adapter") as refusal:
            run(encoder=encoder, out=tmp_path / "a", **arguments)
        assert difference in str(refusal.value)
    (tmp_path / "c").mkdir()
    with pytest.raises(StudyError, match="holds no adapter"):
        run(cells, encoder, tmp_path / "c")


def test_a_type_that_the_encoder_does_not_see_is_named(cells, encoder, tmp_path):
    mixed = replace(cells, labels=np.where(cells.labels == 2, np.arange(180) % 2 * 2, cells.labels))
    scattered = replace(mixed, values=cells.values[np.random.default_rng(1).permutation(180)])
    with pytest.warns(DataWarning, match="cell types are not recovered.*: B, NK, T"):
        run(scattered, encoder, tmp_path / "a")


def test_an_adapter_that_did_not_move_is_named(cells, encoder, tmp_path):
    with pytest.warns(DataWarning, match="weights moved by 0.00% of their norm"):
        run(cells, encoder, tmp_path / "a", QUICK.model_copy(update={"lr": 1e-9, "epochs": 1}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        run(cells, encoder, tmp_path / "b")


def test_synthetic_references_are_labelled(cells, encoder, tmp_path):
    result = run(replace(cells, synthetic=True), encoder, tmp_path / "a")
    assert result.fields()["synthetic"]
    assert "(SYNTHETIC)" in result.text()


def test_wrong_options_say_what_they_should_be():
    assert adapter_params(["mixup=two_cells", "cells=[3, 4]", "dropout=.25"]).dropout == 0.25
    with pytest.raises(StudyError, match="--set dropout: "):
        adapter_params(["dropout=2"])
    with pytest.raises(StudyError, match="--set drop: Extra inputs"):
        adapter_params(["drop=.1"])
    assert encoder_source("pca").name == "pca"
    assert encoder_source("{name: scgpt, folder: x}").params == {"folder": "x"}
    with pytest.raises(StudyError, match="names no encoder"):
        encoder_source("[1, 2]")


@pytest.mark.cluster
def test_workers_give_the_vectors_of_this_process(ray_session, cells, encoder, tmp_path, monkeypatch):
    from equipoise.models.rna.entries import PcaParams

    few = QUICK.model_copy(update={"samples": 60, "epochs": 1})
    monkeypatch.setattr(adaptation, "SAMPLES", 20)
    monkeypatch.setattr(adaptation, "_BLOCK_BYTES", 4 * 30 * 25)
    inline = run(cells, encoder, tmp_path / "inline", few)
    monkeypatch.setattr(adaptation, "_BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(PcaParams, "in_process", False)
    workers = run(cells, encoder, tmp_path / "workers", few)
    assert (tmp_path / "workers" / "model.safetensors").read_bytes() == (
        tmp_path / "inline" / "model.safetensors"
    ).read_bytes()
    assert workers.adapter.record == inline.adapter.record

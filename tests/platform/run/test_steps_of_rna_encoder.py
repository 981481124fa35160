"""A study that reads RNA through scGPT, from its tables to predictions, with a tiny folder of random weights."""

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from equipoise.datasets.atomic_io import read_json
from equipoise.models.gptomic.params import AdapterParams
from equipoise.models.gptomic.smoothing import train_adapter
from equipoise.models.rna.entries import ScGptParams
from equipoise.models.rna.scgpt import ScGpt, ScGptNetwork
from equipoise.models.rna.scgpt_files import ScGptConfig
from equipoise.platform.errors import DataError, ResourceError, StudyError
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.run import steps
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.schema import Study
from equipoise.platform.training import baselines

pytestmark = pytest.mark.filterwarnings("ignore:.*differ from the published")

GENES = [f"GENE{i}" for i in range(40)]
STUDY = """\
version: 1
name: encoded
cohorts:
  - {name: A, role: develop, clinical: a.csv, omics: {rna: {path: a_rna.csv, kind: counts}}}
  - {name: E, role: external, clinical: e.csv, omics: {rna: {path: e_rna.csv, kind: counts}}}
tasks:
  - {name: SCORE, type: regression, column: SCORE}
tables: {rna: {encoder: {name: scgpt, folder: scgpt, draws: 2, max_length: 16, device: cpu}}}
model: {kind: omics, modalities: [rna], network: linear}
training: {epochs: 2, batch: 8}
splits: {folds: 2}
evaluation: {bootstrap: 50}
resources: {workers: 1}
"""


def write_scgpt(folder: Path) -> None:
    """The official files of a network with 16 columns."""
    folder.mkdir()
    tokens = [*GENES, "<pad>", "<cls>", "<eoc>"]
    torch.manual_seed(0)
    network = ScGptNetwork(ScGptConfig(16, 2, 16, 2, 51, -2.0), len(tokens))
    torch.save(network.state_dict(), folder / "best_model.pt")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    args = {"embsize": 16, "nheads": 2, "d_hid": 16, "nlayers": 2, "n_bins": 51, "pad_value": -2}
    (folder / "args.json").write_text(json.dumps(args))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 patients whose score follows a gene, 4 of an external cohort; one profile of each is empty."""
    base = tmp_path_factory.mktemp("encoded")
    write_scgpt(base / "scgpt")
    rng = np.random.default_rng(0)
    for name, n in (("a", 20), ("e", 4)):
        counts = rng.poisson(70, (n, 41))
        clinical = pd.DataFrame({"PATIENT": [f"{name}{i}" for i in range(n)], "SCORE": counts[:, 0] / 10})
        counts[1] = 0
        rna = pd.DataFrame(counts, columns=[*GENES, "unknown"])
        rna.insert(0, "PATIENT", clinical["PATIENT"])
        clinical.to_csv(base / f"{name}.csv", index=False)
        rna.to_csv(base / f"{name}_rna.csv", index=False)
    (base / "study.yaml").write_text(STUDY)
    return base


def study_of(root: Path, **overrides: object) -> Study:
    return load_study(root / "study.yaml", {k.replace("__", "."): v for k, v in overrides.items()})


@pytest.fixture
def baseline_inputs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, tuple[str, ...]]]:
    """Encoder and columns of RNA that baselines are fitted with."""
    seen: list[tuple[object, tuple[str, ...]]] = []
    fit = baselines.fit_fold_baselines

    def watched(folds: Any, tasks: Any, develop: Any, external: Any, recipe: Any, params: Any) -> Any:
        seen.append((recipe.tables.rna.encoder, next(iter(develop.values())).columns["rna"]))
        return fit(folds, tasks, develop, external, recipe, params)

    monkeypatch.setattr(baselines, "fit_fold_baselines", watched)
    return seen


@pytest.mark.slow
@pytest.mark.cluster
def test_from_tables_to_predictions(
    ray_session: None, root: Path, tmp_path: Path, baseline_inputs: list[tuple[object, tuple[str, ...]]]
) -> None:
    study = study_of(root, features__store=str(tmp_path / "features"))
    folder = RunFolder.open(study, str(tmp_path / "run"), "auto")
    steps.run_steps(study, folder, ["validate"])  # before anything is encoded
    with pytest.raises(DataError, match=r"20 of 20 RNA profiles were not encoded yet") as early:
        steps.run_steps(study, folder, ["train"])
    assert "equipoise extract" in str(early.value.fix)
    steps.run_steps(study, folder, ["extract", "train", "evaluate"])

    inputs = RunContext(study, folder).inputs
    vectors = inputs.cohorts.omics["rna"]
    assert list(vectors.columns) == [f"scgpt {i + 1}" for i in range(16)]
    table = pd.read_csv(root / "a_rna.csv", index_col="PATIENT").astype(np.float32)
    encoder = ScGpt(ScGptParams(folder=str(root / "scgpt"), draws=2, max_length=16))
    by_hand = encoder.encode(table.loc[["a5"]].to_numpy(), list(table.columns), kind="counts", seed=0)
    np.testing.assert_array_equal(vectors.loc["a5"].to_numpy(), by_hand[0])

    exclusions = pd.read_csv(folder.manifest / "exclusions.csv")
    assert exclusions[["patient", "stage"]].to_numpy().tolist() == [
        ["a1", "rna encoded"],
        ["e1", "rna encoded"],
    ]
    assert "no expressed gene that RNA encoder scgpt reads" in exclusions["reason"][0]
    predictions = read_predictions(folder.evaluation / "predictions.parquet")
    tested = predictions[predictions["role"] == "test"]
    assert set(tested["patient"]) == {f"a{i}" for i in range(20) if i != 1}
    tables = read_json(folder.folds / "0-0" / "targets.json")["tables"]
    assert tables["rna"]["scale"] == "none"  # vectors are not abundances, even if all are positive
    assert set(tables["rna"]["columns"]) <= set(vectors.columns)
    assert baseline_inputs == [(None, (*GENES, "unknown"))]  # baselines read the table itself
    assert folder.status()["steps"]["extract"]["rna_vectors"].startswith(
        str(tmp_path / "features" / "rna" / "scgpt-")
    )

    blocks = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.parquet")}
    assert len(blocks) == 2  # one a cohort
    again = RunFolder.open(study, str(tmp_path / "second"), "auto")
    steps.run_steps(study, again, ["extract"])
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.parquet")} == blocks


def test_an_adapter_maps_the_vectors(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScGptParams, "in_process", True)
    study = study_of(root, features__store=str(tmp_path / "features"))
    folder = RunFolder(tmp_path / "run")
    steps.run_steps(study, folder, ["extract"])
    plain = RunContext(study, folder).inputs.cohorts.omics["rna"]
    identity = ScGpt.identify(ScGptParams(folder=str(root / "scgpt"), draws=2, max_length=16))
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(32, 16)).astype(np.float32)
    params = AdapterParams(dim=5, epochs=1)
    names = {"encoder": "scgpt", "encoder_fingerprint": identity.fingerprint}
    adapter = train_adapter(samples, np.eye(3)[rng.integers(0, 3, 32)], list("xyz"), params, seed=0, **names)
    adapter.save(tmp_path / "adapter")
    adapted = study_of(
        root, features__store=str(tmp_path / "features"), tables__rna__adapter=str(tmp_path / "adapter")
    )
    table = RunContext(adapted, folder).inputs.cohorts.omics["rna"]
    np.testing.assert_allclose(table.to_numpy(), adapter(plain.to_numpy()), atol=1e-6)
    assert table.shape[1] == 5
    other = adapted.tables.rna.encoder
    assert other is not None
    changed = study_of(
        root,
        features__store=str(tmp_path / "features"),
        tables__rna__adapter=str(tmp_path / "adapter"),
        tables__rna__encoder={"name": "scgpt", "folder": "scgpt", "draws": 3, "max_length": 16},
    )
    steps.run_steps(changed, RunFolder(tmp_path / "other"), ["validate"])
    with pytest.raises(StudyError, match=r"the adapter was made for RNA encoder 'scgpt'"):
        steps.run_steps(changed, RunFolder(tmp_path / "other"), ["extract"])


def test_z_scores_are_refused_before_anything_runs(root: Path, tmp_path: Path) -> None:
    declared = {"cohorts.0.omics.rna": {"path": "a_rna.csv", "kind": "zscore"}}
    with pytest.raises(StudyError, match=r"cohort A: RNA encoder 'scgpt' cannot use z-scores.*standardised"):
        load_study(root / "study.yaml", declared)
    for name in ("a", "e"):
        table = pd.read_csv(root / f"{name}_rna.csv", index_col="PATIENT").iloc[:, :10] - 70
        table.to_csv(tmp_path / f"{name}_z.csv")
    overrides = {f"cohorts.{i}.omics.rna": str(tmp_path / f"{name}_z.csv") for i, name in enumerate("ae")}
    study = load_study(root / "study.yaml", overrides)
    with pytest.raises(DataError, match=r"cannot use z-scores.*cohort A looks like z-scores"):
        steps.run_steps(study, RunFolder(tmp_path / "run"), ["validate"])
    assert not (tmp_path / "run" / "manifest").exists()


def test_missing_files_are_said_by_validate(root: Path, tmp_path: Path) -> None:
    study = study_of(root, tables__rna__encoder={"name": "scgpt", "folder": "nowhere"})
    with pytest.raises(ResourceError, match=r"there is no folder .*nowhere"):
        steps.run_steps(study, RunFolder(tmp_path / "run"), ["validate"])


@pytest.mark.parametrize(
    ("rna", "said"),
    [
        ("{encoder: scgtp}", "unknown rna_encoders entry 'scgtp'.*Did you mean 'scgpt'"),
        ("{encoder: {name: scgpt}}", "folder: Field required"),
        ("{encoder: {name: scgpt, folder: x, layers: 3}}", "layers: Extra inputs"),
        (
            "{encoder: {name: scgpt, folder: x, params: {folder: y}}}",
            "'folder' stands beside the name and under params",
        ),
        ("{adapter: x}", "'adapter' maps vectors of an encoder"),
        ("{encoder: {name: scgpt, folder: x}, transform: log_cpm}", "'transform: log_cpm' is for genes"),
    ],
)
def test_what_the_study_file_may_not_say(root: Path, tmp_path: Path, rna: str, said: str) -> None:
    text = STUDY.replace(
        "{encoder: {name: scgpt, folder: scgpt, draws: 2, max_length: 16, device: cpu}}", rna
    )
    assert text != STUDY
    (tmp_path / "study.yaml").write_text(dedent(text))
    with pytest.raises(StudyError, match=said):
        load_study(tmp_path / "study.yaml")


def test_a_study_written_out_in_full_reads_back(root: Path) -> None:
    study = study_of(root)
    dumped = study.resolved()["tables"]["rna"]["encoder"]
    assert dumped == {
        "name": "scgpt",
        "seed": 0,
        "params": {"folder": "scgpt", "draws": 2, "max_length": 16, "device": "cpu"},
    }
    assert study_of(root, tables__rna__encoder=dumped).tables == study.tables

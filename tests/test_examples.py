"""The example studies run unchanged, on smaller cohorts of the same design."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.run import steps
from equipoise.platform.run.folder import STEPS, RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.schema import smoke_overrides

STUDIES = ("joint_msi_hrd", "paper_2403_03891")


@pytest.fixture(scope="module")
def examples(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ``examples/`` with bench cohorts of 40 patients per site instead of 400."""
    from equipoise.datasets.synthetic import generate
    from equipoise.datasets.synthetic.catalogue import resolve_preset

    folder = tmp_path_factory.mktemp("examples")
    for study in STUDIES:
        shutil.copy(root / "examples" / f"{study}.yaml", folder)
    whole = resolve_preset("bench")
    small = whole.model_copy(
        update={"cohorts": tuple(c.model_copy(update={"patients": 40}) for c in whole.cohorts)}
    )
    for job in generate.plan(small, 1):
        generate.write_patient(job, folder / "bench")
    generate.write_tables(small, 1, folder / "bench")
    return folder


def test_slides_and_omics_become_risks(root: Path, tmp_path: Path, ray_session: None) -> None:
    from equipoise.datasets.synthetic import generate
    from equipoise.datasets.synthetic.catalogue import resolve_preset

    whole = resolve_preset("halves")
    few = {"patients": 14, "side_um": 512.0}
    small = whole.model_copy(
        update={
            "cohorts": tuple(c.model_copy(update=few) for c in whole.cohorts),
            "knobs": whole.knobs.model_copy(update={"missing_rna": 0.4}),
        }
    )
    file = Path(shutil.copy(root / "examples" / "path_gptomic.yaml", tmp_path))
    for job in generate.plan(small, 1):
        generate.write_patient(job, tmp_path / "halves")
    generate.write_tables(small, 1, tmp_path / "halves")
    study = load_study(file, smoke_overrides(load_study(file)))
    result = steps.run_steps(study, RunFolder.open(study, str(tmp_path / "run"), "auto"), STEPS)
    assert "SYNTHETIC" in Path(result.report).read_text(encoding="utf-8")
    tested = read_predictions(tmp_path / "run" / "evaluation" / "predictions.parquet").query("role == 'test'")
    rna = pd.read_parquet(tmp_path / "halves" / "syn-luad-a" / "omics" / "rna.parquet")
    slides = pd.read_csv(tmp_path / "halves" / "syn-luad-a" / "slides.csv")
    assert not set(tested["patient"]) <= set(rna["PATIENT"])  # patients without RNA are predicted, too
    assert set(tested["patient"]) & set(slides["PATIENT"])
    assert tested["score"].nunique() > 1


@pytest.mark.slow
def test_many_cancers_in_one_model_and_one_held_out(root: Path, tmp_path: Path, ray_session: None) -> None:
    from equipoise.datasets.synthetic import generate
    from equipoise.datasets.synthetic.catalogue import resolve_preset

    whole = resolve_preset("pancancer")
    sizes = {"develop": 5, "external": 10}
    small = whole.model_copy(
        update={
            "cohorts": tuple(
                c.model_copy(update={"patients": sizes[c.role], "side_um": 300.0}) for c in whole.cohorts
            ),
            "knobs": whole.knobs.model_copy(update={"missing_label": 0.0}),
        }
    )
    file = Path(shutil.copy(root / "examples" / "modaltune.yaml", tmp_path))
    for job in generate.plan(small, 5):
        generate.write_patient(job, tmp_path / "pancancer")
    generate.write_tables(small, 5, tmp_path / "pancancer")
    study = load_study(file, smoke_overrides(load_study(file)) | {"evaluation.baselines": False})
    result = steps.run_steps(study, RunFolder.open(study, str(tmp_path / "run"), "auto"), STEPS)
    page = Path(result.report).read_text(encoding="utf-8")
    assert "SYNTHETIC" in page
    assert "subtype in syn-stad-a" in page
    predicted = read_predictions(tmp_path / "run" / "evaluation" / "predictions.parquet")
    assert set(predicted["task"]) == {"subtype", "MSI", "OS", "OS_text"}
    assert set(predicted.query("role == 'external'")["cohort"]) == {"syn-stad-a"}
    transfer = pd.read_csv(tmp_path / "run" / "evaluation" / "transfer.csv")
    assert {"probe", "zero-shot", "constant class"} <= set(transfer["predictor"])
    assert set(transfer["task"]) == set(predicted["task"])
    assert transfer["value"].notna().any()
    assert len(pd.read_csv(tmp_path / "run" / "evaluation" / "robustness.csv")) == 4


@pytest.mark.parametrize("name", STUDIES)
def test_example_runs_under_smoke(examples: Path, tmp_path: Path, ray_session: None, name: str) -> None:
    file = examples / f"{name}.yaml"
    study = load_study(file, smoke_overrides(load_study(file)))
    result = steps.run_steps(study, RunFolder.open(study, str(tmp_path / "run"), "auto"), STEPS)
    assert "SYNTHETIC" in Path(result.report).read_text(encoding="utf-8")
    predictions = read_predictions(tmp_path / "run" / "evaluation" / "predictions.parquet")
    tasks = {task.name for task in study.tasks}
    external = {cohort.name for cohort in study.cohorts if cohort.role == "external"}
    assert set(predictions["task"]) == tasks
    assert set(predictions[predictions["role"] == "external"]["cohort"]) == external
    history = pd.read_csv(tmp_path / "run" / "folds" / "0-0" / "history.csv")
    assert {f"weight/{task}" for task in tasks} <= set(history)

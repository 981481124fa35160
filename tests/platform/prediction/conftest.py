"""A finished run over feature bags, small and with enough patients for thresholds; exported once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from equipoise.datasets.atomic_io import write_text
from equipoise.datasets.synthetic import generate
from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME
from equipoise.platform.prediction.exported_model import ExportedModel
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.model_export import export_model
from equipoise.platform.run.steps import RunContext, run_steps

SETTINGS: dict[str, Any] = {
    "name": "bags",
    "tasks": [
        {
            "name": "MSI",
            "type": "binary",
            "column": "MSI",
            "positive": "MSI-H",
            "negative": ["MSS"],
            "main": True,
        },
        {"name": "GRADE", "type": "multiclass", "column": "GRADE", "classes": ["G1", "G2", "G3"]},
        {"name": "LF", "type": "regression", "column": "LF"},
        {
            "name": "OS",
            "type": "survival",
            "time": {"column": "OS_DAYS", "unit": "days"},
            "event": {"column": "OS_EVENT", "event_value": "1"},
        },
    ],
    "model": {"kind": "abmil", "dim": 16, "hidden": 8},
    "training.epochs": 2,
    "splits.folds": 2,
    "splits.inner_val": 0.4,
    "evaluation.baselines.enabled": False,
    "evaluation.bootstrap": 50,
    "evaluation.min_site": 5,
    "evaluation.subgroups": ["SEX"],
    "cohorts.1.role": "external",
}


@pytest.fixture(scope="session")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cohorts of 40 patients as feature bags, with their tables and a study file."""
    root = tmp_path_factory.mktemp("bags")
    preset = PRESETS_BY_NAME["bench"]
    cohorts = tuple(cohort.model_copy(update={"patients": 40}) for cohort in preset.cohorts[:2])
    preset = preset.model_copy(update={"cohorts": cohorts})
    for job in generate.plan(preset, 7):
        generate.write_patient(job, root)
    generate.write_tables(preset, 7, root)
    write_text(root / "study.yaml", generate.study_yaml(preset, 7))
    return root


@pytest.fixture(scope="session")
def run_settings() -> dict[str, Any]:
    """Settings of the run beside those of the study file."""
    return dict(SETTINGS)


@pytest.fixture(scope="session")
def finished(bags: Path) -> RunContext:
    """The run: two folds of two epochs, evaluated on the external cohort."""
    study = load_study(bags / "study.yaml", SETTINGS)
    folder = RunFolder.open(study, str(bags / "run"), "auto")
    run_steps(study, folder, ["validate", "extract", "train", "evaluate"])
    return RunContext(study, folder)


@pytest.fixture(scope="session")
def exported(finished: RunContext) -> ExportedModel:
    """The run as an exported model; copy it before changing anything."""
    return export_model(finished.folder.root.parent / "exported", run=finished.folder.root)


@pytest.fixture(scope="session")
def with_slides(finished: RunContext) -> ExportedModel:
    """The same with the reference of its slides: exported with the study at hand."""
    run = finished.folder.root
    return export_model(run.parent / "exported-with-slides", run=run, study=finished.study)

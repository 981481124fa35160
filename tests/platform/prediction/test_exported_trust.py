"""An exported model brings sets and the reference of its slides, and its card says what was measured."""

from pathlib import Path

import numpy as np

from equipoise.platform.prediction.coverage import external_coverage
from equipoise.platform.prediction.exported_model import ExportedModel
from equipoise.platform.prediction.slide_sets import slide_set
from equipoise.platform.prediction.trust import Trust
from equipoise.platform.run.results import RunResults
from equipoise.platform.run.steps import RunContext


def test_sets_of_the_external_cohort_are_those_that_the_run_would_give(
    finished: RunContext, with_slides: ExportedModel
) -> None:
    predictions = RunResults(finished.folder.root).predictions
    state = with_slides.trust()
    assert state is not None
    trust = Trust.from_dict(state)
    assert trust.conformal is not None
    fitted = Trust.fit(predictions, negatives={"MSI": "MSS"}).conformal
    assert fitted is not None
    external = predictions[predictions["role"] == "external"]
    assert trust.conformal.apply(external).equals(fitted.apply(external))
    assert trust.conformal.tasks["MSI"].classes == ("MSS", "MSI-H")
    coverage = external_coverage(trust.conformal, predictions)
    assert set(coverage["task"]) == {"MSI", "GRADE", "LF", "OS"}
    card = (with_slides.path / "README.md").read_text()
    row = coverage[(coverage["task"] == "LF") & (coverage["class"] == "")].iloc[0]
    assert f"| LF | syn-crc-b | all | {row['n']} | {row['coverage']:.2f} (" in card
    assert "Drift checks of new slides: embedding, tiles" in card


def test_slides_of_training_are_usual_and_others_are_not(
    finished: RunContext, with_slides: ExportedModel
) -> None:
    state = with_slides.trust()
    assert state is not None
    drift = Trust.from_dict(state).drift
    assert drift is not None
    inputs = finished.inputs
    assert inputs.tiles is not None
    slides = slide_set(inputs.cohorts.slides, inputs.tiles)
    rng = np.random.default_rng(0)
    cohort = np.asarray(slides.cohort)
    assert not drift.batch(slides.where(cohort == "syn-crc-a"), rng)["flagged"].any()
    other = drift.batch(slides.where(cohort == "syn-crc-b"), rng)
    assert other["flagged"].all()
    assert other["nearest"].tolist() == ["syn-crc-a"]


def test_without_the_study_there_is_no_drift_check_and_the_card_says_so(exported: ExportedModel) -> None:
    state = exported.trust()
    assert state is not None
    assert state["drift"] is None
    assert "no drift check" in (Path(exported.path) / "README.md").read_text()

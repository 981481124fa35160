"""Slides in the section on limits: what could not be used, and what is used with a remark."""

from pathlib import Path

import pandas as pd

from equipoise.platform.report.blocks import Heading, Table, Text
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.sections.limits import limits, slide_blocks


def run_with(folder: Path, **errors: tuple[str, str]) -> RunFiles:
    (folder / "manifest").mkdir()
    rows = [
        {"slide": slide, "patient": "P", "cohort": "A", "status": status, "error": error}
        for slide, (status, error) in errors.items()
    ]
    pd.DataFrame(rows).to_parquet(folder / "manifest" / "slides.parquet")
    return RunFiles(folder)


def test_remarks_are_shown_apart_from_failures(tmp_path: Path) -> None:
    run = run_with(
        tmp_path,
        good=("ok", ""),
        brown=("ok", "2% of the stained area has a colour of H&E"),
        dark=("wrong_stain", "no transmitted light"),
    )
    heading, failed, remarks, used = slide_blocks(run, 5)
    assert isinstance(heading, Heading)
    assert isinstance(failed, Table)
    assert [row[0] for row in failed.rows] == ["dark"]
    assert isinstance(remarks, Heading)
    assert "with a remark" in remarks.text
    assert isinstance(used, Table)
    assert used.rows == [["brown", "P", "A", "ok", "2% of the stained area has a colour of H&E"]]


def test_without_either_there_is_one_line(tmp_path: Path) -> None:
    blocks = slide_blocks(run_with(tmp_path, good=("ok", "")), 5)
    assert [type(block) for block in blocks] == [Heading, Text]


def planted(**parts: object) -> RunFiles:
    """A run of nothing but what is planted."""
    run = RunFiles(Path("nowhere"))
    nothing = {"study": {}, "status": {}, "inputs": None, "tasks": [], "histories": {}, "fold_records": {},
               "patients": None, "predictions": None, "leakage": None, "metric_rows": [], "labels": [],
               "splits": [], "slides": None, "robustness": None, "feature_robustness": None, "table_batches": [],
               "thumbnails": [], "baselines": None, "branches": None}  # fmt: skip
    run.__dict__ |= nothing | parts
    return run


def said(run: RunFiles, words: str) -> str:
    """The one limit with these words."""
    (found,) = [sentence for sentence in limits(run) if words in sentence]
    return found


def losses(train: list[float], monitor: list[float] | None = None) -> pd.DataFrame:
    table = pd.DataFrame({"epoch": range(1, len(train) + 1), "train/MSI": train})
    return table if monitor is None else table.assign(monitor=monitor)


def test_a_run_without_faults_has_no_planted_limit() -> None:
    history = losses([1.0, 0.6, 0.4], [0.9, 0.5, 0.6])
    assert len(limits(planted(histories={"0-0": history}))) == 1  # probabilities were not recalibrated


def test_a_fit_that_did_not_move_is_said() -> None:
    run = planted(histories={"0-0": losses([1.0, 0.999, 0.995]), "0-1": losses([1.0, 0.6, 0.4])})
    assert said(run, "did not fall") == (
        "The training loss did not fall by 1 % in 1 of 2 folds (0-0): nothing was learned there."
    )


def test_weights_that_never_left_their_start_are_said() -> None:
    run = planted(histories={"0-0": losses([1.0, 0.6, 0.4], [0.5, 0.7, 0.9])})
    assert "Training kept its first epoch in 1 of 1 fold (0-0)" in said(run, "first epoch")


def test_loss_weights_that_did_not_move_are_a_limit() -> None:
    still = losses([1.0, 0.6, 0.4]).assign(**{"weight/MSI": 1.0, "weight/OS": 1.0})
    run = planted(histories={"0-0": still}, study={"balancing": {"weighting": "uncertainty"}})
    assert "In 1 of 1 fold the weights of uncertainty did not move" in said(run, "the weights of")


def test_a_label_that_vanished_is_said() -> None:
    account = {"task": "MSI", "patients": 30, "usable": 25, "losses": []}
    labels = [account | {"cohort": "A"}, account | {"cohort": "X", "usable": 0}]
    assert said(planted(labels=labels), "has no label").startswith("MSI has no label in X (0 of 30 patients)")
    patients = pd.DataFrame({"patient": list("abc"), "cohort": ["A", "A", "X"], "role": "develop",
                             "site": list("pqr"), "MSI": [0.0, 1.0, 0.0]})  # fmt: skip
    run = planted(patients=patients, tasks=[Task("MSI", "binary", True)])
    assert said(run, "no positive") == (
        "MSI has no positive patient among the 1 labelled patient of X: it cannot be measured there."
    )


def test_few_cases_are_named_where_they_are() -> None:
    row = {"site": "all", "fold": "all", "class": "", "predictor": "model", "task": "OS", "metric": "c_index",
           "kind": "survival", "n": 200, "value": 0.9, "low": 0.8, "high": 0.95, "note": ""}  # fmt: skip
    rows = [
        row | {"role": "test", "cohort": "all", "n_pos": 80},
        row | {"role": "external", "cohort": "X", "n_pos": 7},
    ]
    run = planted(metric_rows=rows, tasks=[Task("OS", "survival", True)])
    assert said(run, "rests on").startswith("OS rests on 7 events in X: ")


def test_a_dominant_site_is_said_with_its_share() -> None:
    patients = pd.DataFrame(
        {"patient": list("abcde"), "cohort": "A", "role": "develop", "site": list("ppppq")}
    )
    assert said(planted(patients=patients), "One site") == (
        "One site, p, contributes 80 % of the development patients."
    )


def test_embeddings_nearer_by_centre_than_by_class_are_said() -> None:
    row = {"task": "MSI", "centre": "site", "value": 0.4, "low": 0.3, "high": 0.45, "chance": 0.6}
    sentence = said(planted(robustness=pd.DataFrame([row])), "nearer by site")
    assert "robustness index 0.40, 0.30–0.45; 0.60 at random" in sentence
    assert not [s for s in limits(planted(robustness=pd.DataFrame([row | {"high": 0.7}]))) if "nearer" in s]
    features = said(planted(feature_robustness=pd.DataFrame([row])), "nearer by site")
    assert features.startswith("MSI: features of the encoder are nearer by site than by class")

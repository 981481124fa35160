"""All steps from slides to report: outputs, resuming, refusals, and equal results after kills."""

import contextlib
import dataclasses
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from equipoise.datasets.atomic_io import read_json
from equipoise.platform.errors import DataError, EquipoiseError, StudyError, ToleranceError
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.run import steps
from equipoise.platform.run.folder import STEPS, RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.schema import Study, smoke_overrides


def run_steps(study: Study, out: Path, *names: str) -> steps.RunResult:
    return steps.run_steps(study, RunFolder.open(study, str(out), "auto"), names or STEPS)


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the tiny cohorts and a finished run over them, the second cohort external."""
    root = tmp_path_factory.mktemp("finished") / "cohorts"
    shutil.copytree(tiny, root)
    run_steps(study_of(root), root / "run")
    return root, root / "run"


def study_of(root: Path, **overrides: object) -> Study:
    given = {"cohorts.1.role": "external", "training.epochs": 3}
    return load_study(root / "study.yaml", given | {k.replace("__", "."): v for k, v in overrides.items()})


def test_a_run_leaves_everything_the_report_needs(finished: tuple[Path, Path]) -> None:
    root, run = finished
    predictions = read_predictions(run / "evaluation" / "predictions.parquet")
    cohorts = predictions.groupby("role")["cohort"].unique()
    assert set(cohorts["external"]) == {"syn-crc-b"}
    assert set(cohorts["test"]) == set(cohorts["val"]) == {"syn-crc-a"}
    tested = predictions[(predictions["role"] == "test") & (predictions["task"] == "MSI")]
    assert tested["patient"].is_unique
    assert set(tested["patient"]) == set(pd.read_csv(root / "syn-crc-a" / "slides.csv", dtype=str)["PATIENT"])
    metrics = pd.read_csv(run / "evaluation" / "metrics.csv")
    assert {"auroc", "pearson", "c_index"} <= set(metrics["metric"])
    silhouettes = metrics[metrics["metric"].isin(["silhouette_cosine", "silhouette_euclidean"])]
    assert {"val", "test", "external"} <= set(silhouettes["role"])
    outside = silhouettes.query("fold == 'all' and role == 'external'")["value"]
    assert outside.between(-1, 1).all()
    assert "fold models" in set(metrics.query("role == 'external'")["predictor"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "SYNTHETIC" in page
    assert len(page) < 5e6
    assert (run / "tb" / "0-0").is_dir()
    status = read_json(run / "status.json")
    assert list(status["steps"]) == list(STEPS)
    assert all(step["status"] == "done" for step in status["steps"].values())
    assert pd.read_csv(run / "manifest" / "leakage.csv")["ok"].all()


def test_training_cannot_read_external_patients(finished: tuple[Path, Path]) -> None:
    root, run = finished
    context = steps.RunContext(study_of(root), RunFolder(run))
    reader = context.inputs.cases("develop")
    external = context.inputs.cohorts.patients.query("role == 'external'")["patient"].iloc[0]
    assert external not in set(reader)
    with pytest.raises(DataError, match="not among the develop patients"):
        reader[external]


def test_again_does_nothing_twice_and_changes_nothing(finished: tuple[Path, Path]) -> None:
    root, run = finished
    table = run / "evaluation" / "predictions.parquet"
    weights = [(path, path.stat().st_mtime_ns) for path in sorted(run.glob("folds/*/model.safetensors"))]
    before = table.read_bytes()
    run_steps(study_of(root), run)
    assert table.read_bytes() == before
    assert weights == [
        (path, path.stat().st_mtime_ns) for path in sorted(run.glob("folds/*/model.safetensors"))
    ]


def test_other_settings_need_another_folder(finished: tuple[Path, Path]) -> None:
    root, run = finished
    with pytest.raises(StudyError, match=r"training\.epochs: 3 → 4"):
        run_steps(study_of(root, training__epochs=4), run)
    run_steps(study_of(root, evaluation__bootstrap=60), run, "evaluate", "report")


def train_from(study: Study, out: Path, *others: Path) -> steps.RunResult:
    return steps.run_steps(study, RunFolder.open(study, str(out), "auto"), ["train"], folds_from=others)


def test_folds_of_another_run_are_taken_and_what_it_lacks_is_trained(
    finished: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, run = finished
    shutil.copytree(run / "folds", tmp_path / "other" / "folds")
    names = whole, damaged = sorted(f.name for f in (run / "folds").iterdir() if not f.name.startswith("."))
    (tmp_path / "other" / "folds" / damaged / "preds.parquet").write_bytes(b"")
    with caplog.at_level(logging.INFO, "equipoise"):
        train_from(study_of(root), tmp_path / "run", tmp_path / "nothing", tmp_path / "other")
    taken = [name for name in names if f"fold={name} taken from {tmp_path}/other" in caplog.text]
    assert taken == [whole]
    assert f"{tmp_path}/nothing holds no trained fold" in caplog.text
    assert f"fold={damaged} is not taken from" in caplog.text
    for name in names:
        for file in ("preds.parquet", "model.safetensors", "latents.parquet"):
            ours = (tmp_path / "run" / "folds" / name / file).read_bytes()
            assert ours == (run / "folds" / name / file).read_bytes()
    assert (tmp_path / "other" / "folds" / damaged).exists()  # another's files stay as they are


def test_folds_of_other_settings_are_not_taken(finished: tuple[Path, Path], tmp_path: Path) -> None:
    root, run = finished
    with pytest.raises(StudyError, match=r"trained with other settings or data: .*epochs") as refused:
        train_from(study_of(root, training__epochs=2), tmp_path / "run", run)
    assert str(run) in str(refused.value)
    assert not (tmp_path / "run" / "folds").exists() or not any((tmp_path / "run" / "folds").iterdir())


def test_changed_slides_are_not_evaluated_with_old_models(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slide that leaves changes the folds: evaluate refuses, and the manifest stays that of the training."""
    root = tmp_path / "cohorts"
    shutil.copytree(finished[0], root)
    run = root / "run"
    before = (run / "manifest" / "splits.json").read_bytes()
    study = study_of(root)
    context = steps.RunContext(study, RunFolder(run))
    inputs = context.inputs
    lost = inputs.cohorts.patients.query("role == 'develop'")["patient"].iloc[0]
    left = inputs.cohorts.drop({lost: "its slide was lost"}, "subsample")
    monkeypatch.setattr(context, "_inputs", dataclasses.replace(inputs, cohorts=left))
    with pytest.raises(StudyError, match="this fold was trained with other settings or data"):
        steps.evaluate(context)
    assert (run / "manifest" / "splits.json").read_bytes() == before


def test_validate_keeps_the_manifest_of_the_extraction(finished: tuple[Path, Path]) -> None:
    root, run = finished
    before = (run / "manifest" / "slides.parquet").read_bytes()
    run_steps(study_of(root), run, "validate")
    assert (run / "manifest" / "slides.parquet").read_bytes() == before
    assert RunFolder(run).to_do() == []


def test_steps_say_what_comes_before_them(tiny: Path, tmp_path: Path) -> None:
    study = study_of(tiny, features__store=str(tmp_path / "nowhere"))
    with pytest.raises(EquipoiseError, match="equipoise extract") as caught:
        run_steps(study, tmp_path / "run", "train")
    assert caught.value.exit_code == 3
    assert read_json(tmp_path / "run" / "status.json")["steps"]["train"]["status"] == "failed"


def test_smoke_runs_every_step(tiny: Path, tmp_path: Path) -> None:
    study = study_of(tiny, features__store=str(tmp_path / "features"), patients_per_site=None)
    overrides = {"cohorts.1.role": "external", "features.store": str(tmp_path / "features")}
    small = load_study(tiny / "study.yaml", overrides | smoke_overrides(study))
    result = run_steps(small, tmp_path / "run")
    assert result.report.exists()
    patients = pd.read_parquet(tmp_path / "run" / "manifest" / "patients.parquet")
    assert patients.groupby("cohort")["MSI"].nunique().min() == 2
    left_out = pd.read_csv(tmp_path / "run" / "manifest" / "exclusions.csv")
    everyone = sum(len(pd.read_csv(f)) for f in tiny.glob("syn-*/clinical.csv"))
    gone = left_out[left_out["slide"].isna() & left_out["task"].isna()]["patient"].nunique()
    assert len(patients) + gone == everyone


def test_broken_slides_are_rows_and_decide_the_exit_code(tiny: Path, tmp_path: Path) -> None:
    root = tmp_path / "cohorts"
    shutil.copytree(tiny, root, ignore=shutil.ignore_patterns("features"))
    victim = sorted((root / "syn-crc-b" / "slides").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(ToleranceError, match="1 of") as caught:
        run_steps(study_of(root), root / "run", "validate", "extract")
    assert caught.value.exit_code == 5
    assert victim.stem in str(caught.value)
    slides = pd.read_parquet(root / "run" / "manifest" / "slides.parquet").set_index("slide")
    assert slides.loc[victim.stem, "status"] != "ok"
    assert (slides.drop(victim.stem)["status"] == "ok").all()
    exclusions = pd.read_csv(root / "run" / "manifest" / "exclusions.csv")
    assert victim.stem in set(exclusions["slide"])
    run_steps(study_of(root, features__max_fail=0.2), root / "tolerant", "validate", "extract")


#: Enough epochs for a kill to hit a running training.
LONGER = {"cohorts.1.role": "external", "training.epochs": 80, "training.patience": 80}


def run_process(root: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "equipoise.jobs.run", "-c", "study.yaml", "-o", "run", "--max-cpus", "2"]
    with (root / "log.txt").open("w") as log:  # a pipe that nobody reads would fill and stop the run
        return subprocess.Popen(
            [*command, *(part for key, value in LONGER.items() for part in ("-s", f"{key}={value}"))],
            cwd=root,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_when(process: subprocess.Popen, seen: Callable[[], bool]) -> None:
    """SIGKILL the driver as soon as something is seen; fails if it ends before."""
    deadline = time.monotonic() + 240
    while not seen():
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline, "never came to the moment"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_random_moments_gives_the_same_predictions(tiny: Path, tmp_path: Path) -> None:
    """SIGKILL the driver during extraction, training and evaluation; the resumed run gives the same predictions."""
    root, calm = tmp_path / "cohorts", tmp_path / "calm"
    for copy in (root, calm):
        shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns("features", "run"))
    run = root / "run"
    rng = random.Random()  # other moments every time
    slides, checkpoints = rng.randint(1, 8), rng.randint(2, 40)
    written: set[int] = set()

    def staged() -> bool:
        return len(list(root.glob("features/*/staging/*.arrow"))) >= slides

    def trained() -> bool:
        for checkpoint in run.glob("folds/.*.partial/checkpoint.pt"):
            with contextlib.suppress(FileNotFoundError):
                written.add(checkpoint.stat().st_mtime_ns)
        return len(written) >= checkpoints

    def evaluating() -> bool:
        now = read_json(run / "status.json", {"steps": {}})["steps"]
        return now.get("evaluate", {}).get("status") == "running"

    for moment in (staged, trained, evaluating):
        kill_when(run_process(root), moment)
    process = run_process(root)
    process.wait(timeout=300)
    output = (root / "log.txt").read_text()
    assert process.returncode == 0, output
    result = json.loads(output.strip().splitlines()[-1].removeprefix("EQUIPOISE-RESULT "))
    assert result["status"] == "ok"
    run_steps(load_study(calm / "study.yaml", LONGER), calm / "run")
    one = read_predictions(calm / "run" / "evaluation" / "predictions.parquet")
    other = read_predictions(run / "evaluation" / "predictions.parquet")
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_folder_in_which_nothing_ran_has_no_report(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to report"):
        steps.run_steps(load_study(tiny / "study.yaml"), RunFolder(tmp_path / "empty"), ["report"])


def test_predictions_are_explained_where_the_study_asks_for_it(finished: tuple[Path, Path]) -> None:
    """Maps of both cohorts from stored features, tiles cut out of the slides; federation and report stay done."""
    from equipoise.platform.explain.tile_scores import list_tile_scores, read_tile_scores

    root, run = finished
    without = run_steps(study_of(root), run, "explain")
    assert "no explain section" in without.steps["explain"].details["skipped"]
    study = study_of(
        root, explain={"slides": 1, "tasks": ["MSI"], "methods": ["attention", "gradient_input"]}
    )
    result = run_steps(study, run, "explain", "report")
    assert result.steps["explain"].details["maps"] == 4
    maps = [read_tile_scores(path) for path in list_tile_scores(run / "explain")]
    assert {one.cohort for one in maps} == {"syn-crc-a", "syn-crc-b"}
    assert all(one.synthetic for one in maps)
    tiles = pd.read_parquet(run / "explain" / "tiles.parquet")
    assert all((run / "explain" / crop).is_file() for crop in tiles["crop"])
    assert RunFolder(run).to_do() == []
    again = run_steps(study, run, "explain")
    assert again.steps["explain"].details["made"] == 0

"""A loaded export predicts as the run did, from features, and says what is wrong with what it is given."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.spec import StoreSpec
from equipoise.platform.errors import DataError, StudyError, ToleranceError
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.explain.tile_scores import read_tile_scores
from equipoise.platform.prediction.exported_model import ExportedModel, read_exported
from equipoise.platform.prediction.features import check_store, require_same_tiles
from equipoise.platform.prediction.new_patients import Sources, _listed_slides
from equipoise.platform.prediction.run_prediction import Request, parse_tables, run_prediction
from equipoise.platform.prediction.sealed_folder import seal
from equipoise.platform.prediction.trust import Trust
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.model_export import export_model
from equipoise.platform.run.results import RunResults
from equipoise.platform.run.steps import RunContext, run_steps

KEY = ["patient", "repeat", "fold", "task", "class"]


@pytest.fixture(scope="module")
def predicted(bags: Path, exported: ExportedModel) -> Path:
    """Predictions of the external cohort from its ``.h5`` files; 38 of 40 patients have a slide."""
    request = Request(
        model=exported.path,
        out=bags / "predicted",
        features=str(bags / "syn-crc-b" / "features"),
        slides=str(bags / "syn-crc-b" / "slides.csv"),
        pages=False,
    )
    done = run_prediction(request)
    assert "(SYNTHETIC): 38 of 38 patients predicted" in done.text
    assert done.fields["synthetic"]
    return request.out


def differences(run: Path, members: Path) -> pd.Series:
    """Differences of the scores of every external patient, fold, task and class, relative to 1 + their size."""
    folds = sorted((run / "folds").iterdir())
    external = pd.concat([read_predictions(fold / "external.parquet") for fold in folds])
    found = read_predictions(members)
    both = external.merge(found, on=KEY, how="outer", suffixes=("", "_found"), indicator=True)
    assert set(both["_merge"]) == {"both"}
    return (both["score"] - both["score_found"]).abs() / (1 + both["score"].abs())


def test_the_scores_are_those_of_the_run(finished: RunContext, predicted: Path) -> None:
    found = differences(finished.folder.root, predicted / "members.parquet")
    assert len(found) == 38 * 2 * 6
    assert found.max() <= 1e-6


def test_scores_are_combined_and_called_as_in_the_evaluation(finished: RunContext, predicted: Path) -> None:
    table = pd.read_parquet(predicted / "predictions.parquet")
    run = RunResults(finished.folder.root)
    external = run.predictions[run.predictions["role"] == "external"]
    mean = external.groupby(["task", "patient", "class"])["score"].mean()
    for task, output in (("MSI", "probability"), ("GRADE", "probability"), ("LF", "value")):
        rows = table[table["task"] == task]
        assert set(rows["output"]) == {output}
        for row in rows.itertuples():
            assert row.score == pytest.approx(mean[task, row.patient, row._5], abs=1e-9)
    metrics = run.metrics
    of_run = metrics[
        (metrics["task"] == "MSI") & (metrics["role"] == "external") & (metrics["predictor"] == "model")
        & (metrics["fold"] == "all") & (metrics["cohort"] == "syn-crc-b") & (metrics["site"] == "all")
    ].set_index("metric")["value"]  # fmt: skip
    truth = external[external["task"] == "MSI"].drop_duplicates("patient").set_index("patient")["target"]
    msi = table[table["task"] == "MSI"].set_index("patient")
    assert (msi["call"] == np.where(msi["score"] >= msi["threshold"], "MSI-H", "MSS")).all()
    assert (msi["call"] == "MSI-H")[truth == 1].mean() == pytest.approx(of_run["sensitivity"])
    assert (msi["call"] == "MSS")[truth == 0].mean() == pytest.approx(of_run["specificity"])
    grade = table[table["task"] == "GRADE"]
    best = grade.loc[grade.groupby("patient")["score"].idxmax()].set_index("patient")["class"]
    assert (grade["call"] == grade["patient"].map(best)).all()


def test_the_folder_says_what_it_holds(exported: ExportedModel, predicted: Path) -> None:
    about = json.loads((predicted / "about.json").read_text())
    assert about["sha256"] == exported.sealed.sha256
    assert about["synthetic"]
    assert not (predicted / "patients").exists()
    patients = pd.read_csv(predicted / "patients.csv")
    assert patients["predicted"].all()
    assert len(pd.read_csv(predicted / "slides.csv")) == 38
    csv = pd.read_csv(predicted / "predictions.csv")
    assert list(csv["patient"].drop_duplicates()) == list(patients["patient"])


def test_slides_of_a_store_are_patients_of_their_own(
    finished: RunContext, exported: ExportedModel, tmp_path: Path
) -> None:
    store = next(finished.study.base.glob("features/*/store.json")).parent
    check_store(exported, store)
    done = run_prediction(
        Request(model=exported.path, out=tmp_path / "out", features=str(store), pages=False)
    )
    assert done.fields["patients"] == len(finished.inputs.cohorts.slides)  # of both cohorts


def test_maps_of_new_slides(bags: Path, exported: ExportedModel, tmp_path: Path) -> None:
    """Scores of every tile for the predicted class, with their checks; pictures although no slide is here."""
    slides = pd.read_csv(bags / "syn-crc-b" / "slides.csv", dtype=str).head(1)
    slides.to_csv(tmp_path / "slides.csv", index=False)
    request = Request(
        model=exported.path,
        out=tmp_path / "out",
        features=str(bags / "syn-crc-b" / "features"),
        slides=str(tmp_path / "slides.csv"),
        maps=("GRADE",),
    )
    run_prediction(request)
    (folder,) = (tmp_path / "out" / "maps").iterdir()
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    call = table.loc[table["task"] == "GRADE", "call"].iloc[0]
    scores = read_tile_scores(folder / f"GRADE.{call}.gradient_input.parquet")
    assert len(scores.score) == pd.read_csv(tmp_path / "out" / "patients.csv")["tiles"].item()
    assert {"deletion", "randomisation"} <= {check.name for check in scores.checks}
    assert scores.synthetic
    assert (folder / f"GRADE.{call}.gradient_input.png").exists()
    (page,) = (tmp_path / "out" / "patients").iterdir()
    assert f"GRADE: {call}, gradient input" in page.read_text()


def test_what_is_missing_is_a_row_and_too_much_of_it_an_error(
    bags: Path, exported: ExportedModel, tmp_path: Path
) -> None:
    slides = pd.read_csv(bags / "syn-crc-b" / "slides.csv", dtype=str)
    slides.loc[0, "FILENAME"] = "not-there.svs"
    slides.head(10).to_csv(tmp_path / "slides.csv", index=False)
    features = str(bags / "syn-crc-b" / "features")
    request = Request(
        model=exported.path, out=tmp_path / "out", features=features, slides=str(tmp_path / "slides.csv")
    )
    with pytest.raises(ToleranceError, match="10.0% of the slides failed"):
        run_prediction(request)
    patients = pd.read_csv(tmp_path / "out" / "patients.csv")
    (lost,) = patients[~patients["predicted"]].itertuples()
    assert lost.patient == slides.loc[0, "PATIENT"]
    assert "missing" in lost.reason
    assert pd.read_parquet(tmp_path / "out" / "predictions.parquet")["patient"].nunique() == 9
    slides.head(1).to_csv(tmp_path / "slides.csv", index=False)
    with pytest.raises(DataError):  # nobody is left
        run_prediction(request)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, StudyError, "nothing to predict from; the model reads wsi"),
        ({"tables": ("rna=x.csv",)}, StudyError, "reads no table 'rna'"),
        ({"features": "nowhere"}, DataError, "no file or folder"),
        ({"slides": "."}, StudyError, "imported.*nothing here can extract"),
        ({"features": "."}, DataError, "neither a feature store nor"),
        ({"coverage": 90.0}, StudyError, "above 0.5 and below 1"),
        ({"files": ("a=b",)}, StudyError, "asks for none"),
        ({"maps": ("MSS",)}, StudyError, "no task 'MSS'"),
        ({"files": ("a",)}, StudyError, "KEY=PATH"),
        ({"sha256": "0" * 64}, DataError, "not the expected"),
    ],
)
def test_bad_requests(
    exported: ExportedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run_prediction(Request(model=exported.path, out=tmp_path / "out", **options))


def test_predictions_are_not_written_into_the_model(exported: ExportedModel) -> None:
    with pytest.raises(StudyError, match="written into the model"):
        run_prediction(Request(model=exported.path, out=exported.path / "new"))
    assert read_exported(exported.path).sealed.sha256 == exported.sealed.sha256


def test_features_of_another_kind_are_refused(exported: ExportedModel, tmp_path: Path) -> None:
    trained = exported.config.features.tiles
    assert require_same_tiles(trained, trained, where="x") == []
    for change, message in (
        ({"mpp": 2 * trained.mpp}, "um/px, not"),
        ({"encoder": "other"}, "features of .*, not of other"),
        ({"encoder_hash": "imported: other"}, "other weights or settings"),
        ({"dim": 7}, "features per tile, not 7"),
        ({"tile_px": 7}, "tiles of .* px, not 7"),
    ):
        other = StoreSpec(**{**vars(trained), **change})
        with pytest.raises(DataError, match=message):
            require_same_tiles(trained, other, where="x")
        with FeatureStore.create_or_open(tmp_path / "stores", other) as store:
            store.commit()
        with pytest.raises(DataError, match=message):
            check_store(exported, tmp_path / "stores" / other.folder)


def test_imported_weights_are_taken_on_the_users_word_only(exported: ExportedModel) -> None:
    imported = exported.config.features.tiles
    extracted = StoreSpec(**{**vars(imported), "encoder_hash": "abcdef"})
    for trained, found in ((extracted, imported), (imported, extracted)):
        with pytest.raises(DataError, match="--accept-imported"):
            require_same_tiles(trained, found, where="x")
        assert require_same_tiles(trained, found, where="x", accept_imported=True) == [
            "encoder weights not verified"
        ]
    other = StoreSpec(**{**vars(extracted), "encoder_hash": "123456"})
    with pytest.raises(DataError, match="other weights"):
        require_same_tiles(extracted, other, where="x", accept_imported=True)


def test_tables_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "rna.yaml").write_text("path: rna.csv\nkind: tpm\n")
    given = parse_tables(("cnv=cnv.csv", f"rna={tmp_path / 'rna.yaml'}"))
    assert given == {"cnv": "cnv.csv", "rna": {"path": "rna.csv", "kind": "tpm"}}
    for pairs, message in ((("rna",), "NAME=TABLE"), (("rna=a", "rna=b"), "twice")):
        with pytest.raises(StudyError, match=message):
            parse_tables(pairs)
    # The table of slides, too: with columns of any name.
    (tmp_path / "scans.csv").write_text("Scan,Case\na.svs,P1\n")
    (tmp_path / "scans.yaml").write_text(
        f"path: {tmp_path}/scans.csv\nrename: {{Case: PATIENT, Scan: FILENAME}}\n"
    )
    listed = _listed_slides(Sources(slides=tmp_path / "scans.yaml"))
    assert listed is not None
    assert listed.slides[["patient", "stem"]].to_numpy().tolist() == [["P1", "a"]]
    with pytest.raises(DataError, match=r"rename: \{COLUMN: PATIENT\} of the table"):
        _listed_slides(Sources(slides=tmp_path / "scans.csv"))


def test_new_patients_get_sets_flags_and_pages(
    finished: RunContext, with_slides: ExportedModel, bags: Path, tmp_path: Path
) -> None:
    """Exported with the study at hand: drift against the development slides, and a page per patient."""
    model, out = with_slides, tmp_path / "out"
    features, slides = str(bags / "syn-crc-b" / "features"), str(bags / "syn-crc-b" / "slides.csv")
    done = run_prediction(Request(model=model.path, out=out, features=features, slides=slides))
    assert done.fields["drift"] is True
    assert "drift: mean features of the tiles" in done.text
    assert "no answer: " in done.text
    table = pd.read_parquet(out / "predictions.parquet")
    state = model.trust()
    assert state is not None
    conformal = Trust.from_dict(state).conformal
    assert conformal is not None
    predictions = RunResults(finished.folder.root).predictions
    wanted = conformal.apply(predictions[predictions["role"] == "external"])
    lf = table[table["task"] == "LF"].set_index("patient")
    of_run = wanted[wanted["task"] == "LF"].set_index("patient")
    np.testing.assert_allclose(lf["low"], of_run["low"].reindex(lf.index), atol=1e-5)
    assert set(table.loc[table["task"] == "MSI", "set"]) <= {"MSS | MSI-H", "MSS", "MSI-H", "none"}
    assert (table["abstained"] == (table["reasons"] != "")).all()
    drift = pd.read_csv(out / "drift.csv")
    assert set(drift["check"]) == {"embedding", "tiles", "mpp"}
    far = set(drift.loc[drift["flagged"], "patient"])
    assert far
    assert set(table.loc[table["abstained"], "patient"]) >= far
    patients = pd.read_csv(out / "patients.csv", keep_default_na=False).set_index("patient")
    assert patients.loc[sorted(far), "flags"].str.contains("unlike training").all()
    assert pd.read_csv(out / "batch.csv")["flagged"].tolist() == [True]
    pages = sorted((out / "patients").glob("*.html"))
    assert len(pages) == 38
    page = pages[0].read_text()
    assert pages[0].stem in page
    assert "Research use only" in page


@pytest.mark.slow
def test_a_fresh_process_predicts_the_same(
    bags: Path, finished: RunContext, exported: ExportedModel, tmp_path: Path
) -> None:
    command = ["predict", "--model", str(exported.path), "-o", str(tmp_path / "out")]
    command += ["--features", str(bags / "syn-crc-b" / "features"), "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "equipoise.jobs.cli", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stderr.strip().splitlines()[-1].removeprefix("EQUIPOISE-RESULT "))
    assert result["patients"] == 38
    # Without the slides table every slide is a patient: its name begins with that of the patient.
    members = read_predictions(tmp_path / "out" / "members.parquet")
    members["patient"] = members["patient"].str.replace(r"-01Z.*", "", regex=True)
    external = pd.concat(
        [read_predictions(fold / "external.parquet") for fold in sorted(finished.folder.folds.iterdir())]
    )
    both = external.merge(members, on=KEY)
    assert len(both) == len(external) == len(members)
    assert (both["score_x"] - both["score_y"]).abs().max() <= 1e-6
    (exported_copy := tmp_path / "copy").mkdir()
    for file in exported.path.rglob("*"):
        target = exported_copy / file.relative_to(exported.path)
        target.mkdir(exist_ok=True) if file.is_dir() else target.write_bytes(file.read_bytes())
    weights = exported_copy / "models" / "0-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    command[2] = str(exported_copy)
    done = subprocess.run(
        [sys.executable, "-m", "equipoise.jobs.cli", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 3
    assert "model.safetensors is not what was written" in done.stderr


MODELS: dict[str, dict[str, Any]] = {
    "clinical": {
        "model": {"kind": "clinical"},
        "training.members": 2,
        "tables.clinical": [{"column": "AGE", "type": "number"}, {"column": "STAGE", "type": "category"}],
    },
    "elastic_net": {"model": {"kind": "elastic_net"}, "tables.rna.genes": 50},
    "concat": {"model": {"kind": "concat"}, "training.text": {"encoder": "hashed"}},
    "gptomic": {"model": {"kind": "gptomic"}, "tables.rna.standardise": "per_cohort"},
    "modaltune": {"model": {"kind": "modaltune", "slide_encoder": "random_transformer"}},
    "vectors": {"model": {"kind": "mean_pool"}, "features.slide_encoder": "mean_std"},
}


@pytest.mark.slow
def test_new_slides_are_extracted_as_in_training(tiny: Path, tmp_path: Path) -> None:
    """From slides to the same scores as in the run, without its tables and its features."""
    study = load_study(
        tiny / "study.yaml",
        {
            "cohorts.1.role": "external",
            "features.store": str(tmp_path / "features"),
            "model": {"kind": "mean_pool", "dim": 8},
            "training.epochs": 1,
            "evaluation.baselines.enabled": False,
        },
    )
    folder = RunFolder.open(study, str(tmp_path / "run"), "auto")
    run_steps(study, folder, ["validate", "extract", "train", "evaluate"])
    model = export_model(tmp_path / "exported", run=folder.root)
    b = tiny / "syn-crc-b"
    request = Request(
        model=model.path, out=tmp_path / "out", slides=str(b / "slides.csv"), slides_dir=str(b / "slides")
    )
    run_prediction(request)
    assert differences(folder.root, tmp_path / "out" / "members.parquet").max() <= 1e-6
    slides = pd.read_csv(tmp_path / "out" / "slides.csv")
    assert (slides["status"] == "ok").all()
    assert len(list((tmp_path / "out" / "qc").glob("*.jpg"))) == len(slides)
    whole = run_prediction(
        replace(request, slides=str(b / "slides"), slides_dir=None, out=tmp_path / "folder")
    )
    assert whole.fields["patients"] == len(slides)  # every slide of a folder is a patient
    wrong = tmp_path / "wrong"
    shutil.copytree(model.path, wrong)
    config = json.loads((wrong / "config.json").read_text())
    config["features"]["extraction"]["mpp"] = 0.5
    (wrong / "config.json").write_text(json.dumps(config))
    seal(wrong)
    with pytest.raises(DataError, match="trained on 1 um/px, not 0.5"):
        run_prediction(replace(request, model=wrong, out=tmp_path / "refused"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_predicts_as_in_its_run(
    bags: Path, run_settings: dict[str, Any], tmp_path: Path, name: str
) -> None:
    """Models of slides, of tables and of both; ensembles in a fold; heads on text; slide encoders; solvers."""
    settings = {**run_settings, "name": name, "training.epochs": 1, **MODELS[name]}
    study = load_study(bags / "study.yaml", settings)
    folder = RunFolder.open(study, str(tmp_path / "run"), "auto")
    run_steps(study, folder, ["validate", "extract", "train", "evaluate"])
    model = export_model(tmp_path / "exported", run=folder.root)
    b = bags / "syn-crc-b"
    tables = {"clinical": b / "clinical.csv"}
    tables |= {modality: b / "omics" / f"{modality}.parquet" for modality in ("rna", "cnv", "mutation")}
    reads = model.config.reads
    run_prediction(
        Request(
            model=model.path,
            out=tmp_path / "out",
            features=str(b / "features") if "wsi" in reads else None,
            slides=str(b / "slides.csv") if "wsi" in reads else None,
            tables=tuple(f"{modality}={path}" for modality, path in tables.items() if modality in reads),
            cohort="syn-crc-b",
        )
    )
    assert differences(folder.root, tmp_path / "out" / "members.parquet").max() <= 1e-6

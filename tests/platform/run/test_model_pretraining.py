"""``equipoise pretrain``: a folder to start from or to encode slides with, but not to test on whom it has seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from equipoise.datasets.atomic_io import read_json, write_text
from equipoise.datasets.errors import DataError
from equipoise.datasets.synthetic import generate
from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME
from equipoise.models.pretrained_folder import read_pretrained
from equipoise.platform.errors import StudyError
from equipoise.platform.extraction.sources import obtain_features
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.model_pretraining import PretrainedModel
from equipoise.platform.run.steps import RunContext, run_steps
from equipoise.platform.study.schema import Study
from equipoise.platform.training.crossval import load_fold
from equipoise.platform.training.epoch_log import EpochLog
from equipoise.platform.training.predict import run_model

SETTINGS: dict[str, Any] = {
    "model": {"kind": "abmil", "dim": 16, "hidden": 8},
    "tasks.2.main": True,  # LF
    "tasks.0.main": False,
    "training.epochs": 2,
    "splits.folds": 2,
    "evaluation.baselines.enabled": False,
    "evaluation.bootstrap": 50,
    "cohorts.2.role": "external",
    "pretrain": {"cohorts": ["syn-crc-a", "syn-crc-b"]},
}
SMALL: dict[str, Any] = {"name": "other", "pretrain": None}


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cohorts of 14 patients as feature bags."""
    root = tmp_path_factory.mktemp("bags")
    preset = PRESETS_BY_NAME["bench"]
    cohorts = tuple(c.model_copy(update={"patients": 14}) for c in preset.cohorts[:3])
    preset = preset.model_copy(update={"cohorts": cohorts})
    for job in generate.plan(preset, 7):
        generate.write_patient(job, root)
    generate.write_tables(preset, 7, root)
    write_text(root / "study.yaml", generate.study_yaml(preset, 7))
    return root


def run(root: Path, out: Path, *steps: str, **changes: Any) -> RunContext:
    study = load_study(root / "study.yaml", SETTINGS | changes)
    folder = RunFolder.open(study, str(out), "auto")
    run_steps(study, folder, steps)
    return RunContext(study, folder)


@pytest.fixture(scope="module")
def pretrained(bags: Path) -> RunContext:
    return run(bags, bags / "run", "validate", "extract", "pretrain")


def of_third(model: Path, **changes: Any) -> dict[str, Any]:
    """A study of the third cohort alone, which starts from the model."""
    kept = {"cohorts.2.role": "develop", "cohorts.0.role": "external", "cohorts.1.role": "external"}
    return SMALL | kept | {"training.start": str(model)} | changes


def only_third(root: Path) -> Path:
    """The study file without the cohorts of the pre-training."""
    import yaml

    data = yaml.safe_load((root / "study.yaml").read_text())
    data["cohorts"] = data["cohorts"][2:]
    path = root / "third.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def study_of_third(root: Path, **changes: Any) -> Study:
    settings = {key: value for key, value in SETTINGS.items() if not key.startswith("cohorts")}
    return load_study(only_third(root), settings | {"name": "third", "pretrain": None} | changes)


def test_the_folder_says_what_it_holds(pretrained: RunContext) -> None:
    model = pretrained.folder.pretrain / "model"
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors", "seen.json"]
    folder = read_pretrained(model)
    assert (folder.model, folder.model_params["dim"], folder.tiles.dim) == ("abmil", 16, 384)
    assert folder.tasks == ("MSI", "LISS", "LF", "SF", "Prolif", "ITH", "OS")
    patients = pretrained.inputs.cohorts.patients
    learned = patients[patients["cohort"] != "syn-luad-a"]
    assert folder.record["cohorts"] == learned["cohort"].value_counts(sort=False).to_dict()
    assert sum(folder.record["patients"].values()) == len(learned)
    assert folder.record["made_by"]["training"]["task_sampling"] == {"temperature": 2.0}
    assert folder.record["synthetic"]
    assert "(SYNTHETIC)" in PretrainedModel(folder).text()
    (seen,) = read_json(model / "seen.json")["parts"]
    assert len(seen["patients"]) == len(seen["slides"]) == len(learned)
    assert not any(patient.lower() in (model / "seen.json").read_text() for patient in patients["patient"])
    step = pretrained.folder.status()["steps"]["pretrain"]
    assert (step["status"], step["fingerprint"]) == ("done", folder.fingerprint)
    fold = load_fold(pretrained.folder.pretrain / "training" / "0-0")
    assert not set(fold.config["patients"]["train"] + fold.config["patients"]["val"]) - set(
        learned["patient"]
    )
    assert fold.config["patients"]["test"] == []


def test_interrupted_and_resumed_equals_uninterrupted(
    bags: Path, pretrained: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = EpochLog.__call__

    def power_cut(self: EpochLog, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EpochLog, "__call__", power_cut)
    with pytest.raises(KeyboardInterrupt):
        run(bags, tmp_path / "run", "pretrain")
    assert list(tmp_path.rglob("checkpoint.pt"))
    monkeypatch.setattr(EpochLog, "__call__", whole)
    again = run(bags, tmp_path / "run", "pretrain")
    one, other = (c.folder.pretrain / "model" for c in (pretrained, again))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert read_pretrained(one).fingerprint == read_pretrained(other).fingerprint
    written = (other / "config.json").stat().st_mtime_ns
    run(bags, tmp_path / "run", "pretrain")  # nothing is done twice
    assert (other / "config.json").stat().st_mtime_ns == written
    with pytest.raises(StudyError, match="trained with other settings or data"):
        run(bags, tmp_path / "run", "pretrain", pretrain={"cohorts": ["syn-crc-a"]})


def test_another_study_starts_from_it(bags: Path, pretrained: RunContext, tmp_path: Path) -> None:
    model = pretrained.folder.pretrain / "model"
    changes = {
        "training.start": str(model),
        "training.lr": 1e-12,
        "training.epochs": 1,
        "training.weight_decay": 0,
    }
    study = study_of_third(
        bags, **changes, features={"imported": ["syn-luad-a/features"], "store": "features"}
    )
    run_steps(study, RunFolder.open(study, str(tmp_path), "auto"), ["extract", "train"])
    fold = load_fold(tmp_path / "folds" / "0-0")
    assert fold.config["made_by"]["training"]["start"] == read_pretrained(model).fingerprint
    taken = read_pretrained(model).tensors()
    for name, value in fold.model.state_dict().items():  # nothing was learned with this rate
        same = torch.allclose(value, taken[name], atol=1e-6) if value.shape == taken[name].shape else False
        assert same == (not name.startswith("heads.")), name
    assert not any("has seen" in w for w in read_json(tmp_path / "manifest" / "warnings.json"))
    audit = pd.read_csv(tmp_path / "manifest" / "leakage.csv")
    checks = audit[audit["check"].str.contains("training.start")]
    assert set(checks["check"].str.split(" that").str[0]) == {"patient", "slide file"}
    assert checks["ok"].all()


def test_who_was_seen_is_not_tested(bags: Path, pretrained: RunContext, tmp_path: Path) -> None:
    model = str(pretrained.folder.pretrain / "model")
    start = {"name": "seen", "pretrain": None, "training.start": model}
    with pytest.raises(
        DataError,
        match=r"(?s)patients who are tested were seen by the pre-trained model of training\.start.*pretrain\.cohorts",
    ):
        run(bags, tmp_path / "a", "train", **start)
    external = of_third(Path(model))
    with pytest.raises(DataError, match="were seen by the pre-trained model"):
        run(bags, tmp_path / "b", "train", **external)
    for step, section in (("federate", {"federation": {"rounds": 1}}), ("search", {"search": {"trials": 1}})):
        with pytest.raises(DataError, match="were seen by the pre-trained model"):
            run(bags, tmp_path / step, step, **start, **section)
    mark = {"evaluation.seen_patients": "mark", "training.epochs": 1}
    context = run(bags, tmp_path / "c", "train", "report", **start, **mark)
    audit = pd.read_csv(context.folder.manifest / "leakage.csv")
    tested = audit[~audit["ok"]]
    assert set(tested["check"]) == {
        "patient that training.start has seen",
        "slide file that training.start has seen",
    }
    page = context.folder.report.read_text()
    assert "The leakage audit failed" in page
    assert "their scores are too good" in page


def test_a_patient_under_another_name_is_known_by_the_slide(
    bags: Path, pretrained: RunContext, tmp_path: Path
) -> None:
    from equipoise.platform.run.seen_patients import seen_by_parts, seen_sentences

    study = pretrained.study.model_copy(
        update={
            "training": pretrained.study.training.model_copy(
                update={"start": str(pretrained.folder.pretrain / "model")}
            )
        }
    )
    seen = seen_by_parts(study)
    assert pretrained.inputs.tiles is not None
    index = pretrained.inputs.tiles.index()
    slide = pretrained.inputs.cohorts.slides.query("cohort == 'syn-crc-a'").iloc[0]
    print_of = index.set_index("slide").loc[slide["slide"], "fingerprint"]
    renamed = pd.DataFrame({"patient": ["new", "other"], "fingerprint": [print_of, "unknown"]})
    (sentence,) = seen_sentences(seen, ["new", "other"], renamed)
    assert sentence.startswith("1 of 2 patients who are tested were seen")
    assert "(new)" in sentence
    assert seen_sentences(seen, ["other"], renamed) == []


def test_as_a_slide_encoder(bags: Path, pretrained: RunContext, tmp_path: Path) -> None:
    features = {
        "imported": ["syn-luad-a/features"],
        "store": "features",
        "slide_encoder": "pretrained",
        "slide_encoder_params": {"folder": "run/pretrain/model"},  # relative to the study file
    }
    linear = {"model": {"kind": "mean_pool", "layers": 0}, "training.epochs": 1}
    study = study_of_third(bags, features=features, **linear)
    context = encoded(study, tmp_path)
    run_steps(study, context.folder, ["train"])
    store = context.inputs.tiles
    assert store is not None
    assert store.spec.dim == 16
    fold = load_fold(pretrained.folder.pretrain / "training" / "0-0")
    reader = pretrained.inputs.cases("external")  # the same cohort, as bags of tiles
    cases = [reader[patient] for patient in list(reader)[:5]]
    expected = run_model(fold.model, fold.targets, cases, keep_latents=True).latents["LF"].numpy()
    found = np.stack([store.read(case.slides[0])[0][0] for case in cases])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)

    features["imported"] = [f"{cohort}/features" for cohort in ("syn-crc-a", "syn-crc-b", "syn-luad-a")]
    settings = SETTINGS | linear | {"name": "seen", "pretrain": None, "features": features}
    seen = encoded(load_study(bags / "study.yaml", settings), tmp_path / "seen")
    with pytest.raises(DataError, match="the pre-trained model of features.slide_encoder"):
        run_steps(seen.study, seen.folder, ["train"])


def encoded(study: Study, out: Path) -> RunContext:
    """The context of a study whose features are made in this process."""
    context = RunContext(study, RunFolder.open(study, str(out), "auto"))
    obtain_features(context.cohorts.slides, study.features, context.store_root, study.base, workers=0)
    return context


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain": {"cohorts": ["syn-luad-a"]}}, "has role external: it is tested, never trained on"),
        ({"pretrain": {"cohorts": ["syn-crc"]}}, r"'syn-crc' is no cohort of the study.*Did you mean 'syn-crc-"),
        ({"model": {"kind": "elastic_net"}}, "pretrain: 'elastic_net' reads"),
        ({"model": {"kind": "mean_pool", "layers": 0}}, "its tasks share nothing"),
        (
            {"pretrain": None, "model": {"kind": "elastic_net"}, "training.task_sampling": {}},
            "training.task_sampling: 'elastic_net' is fitted by a solver, which draws no patients",
        ),
        ({"training.order": "stratified"}, "pretrain.sampling: .*or write sampling: null"),
        ({"pretrain": None, "model": {"kind": "omics"}, "training.start": "x"}, "training.start: 'omics' reads"),
    ],
)  # fmt: skip
def test_what_cannot_be_pretrained_is_refused(bags: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load_study(bags / "study.yaml", SETTINGS | changes)


def test_the_job_names_the_model(
    bags: Path, pretrained: RunContext, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from equipoise.jobs import cli, outcome

    monkeypatch.setattr(outcome, "set_up_logging", lambda *_: None)  # it is for a process of its own
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    arguments = ["pretrain", "-c", str(bags / "study.yaml"), "-o", str(bags / "run"), *settings]
    before = (pretrained.folder.pretrain / "model" / "config.json").stat().st_mtime_ns
    with pytest.raises(SystemExit) as ended:
        cli._app({"pretrain": cli.JOBS["pretrain"]})(arguments, prog_name="equipoise")
    assert ended.value.code == 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    result = json.loads(line.removeprefix("EQUIPOISE-RESULT "))
    assert (result["job"], result["model"]) == ("pretrain", str(bags / "run" / "pretrain" / "model"))
    assert (
        pretrained.folder.pretrain / "model" / "config.json"
    ).stat().st_mtime_ns == before  # nothing to do


@pytest.mark.cluster
@pytest.mark.slow
def test_two_workers_pretrain_as_one(
    bags: Path, pretrained: RunContext, ray_session: None, tmp_path: Path
) -> None:
    same = {"model": {"kind": "abmil", "dim": 16, "hidden": 8, "dropout": 0.0}, "training.bag_tiles": None}
    models = []
    for workers in (1, 2):
        context = run(bags, tmp_path / str(workers), "pretrain", **same, **{"training.workers": workers})
        models.append(read_pretrained(context.folder.pretrain / "model").tensors())
    for name, value in models[0].items():
        if name == "attentions.0.score.bias":
            continue  # softmax does not see it: no gradient but rounding, which Adam magnifies
        torch.testing.assert_close(models[1][name], value, rtol=1e-3, atol=1e-4, msg=name)

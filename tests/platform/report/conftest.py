"""A run folder made from nothing but numbers: what the jobs would leave behind, small and fast to write."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from equipoise.platform.evaluation.detail_tables import write_details
from equipoise.platform.evaluation.evaluate import evaluate
from equipoise.platform.evaluation.latents import EXTERNAL_LATENTS, FOLD_LATENTS, write_latents
from equipoise.platform.evaluation.metrics_table import write_metrics
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import read_predictions, write_predictions
from equipoise.platform.evaluation.robustness import robustness, write_robustness
from equipoise.platform.evaluation.subgroups import subgroup_values

FOLDS = 3
CLASSES = ("G1", "G2", "G3")
PARAMS = EvaluationParams(bootstrap=200)


@dataclass(frozen=True)
class Made:
    """What a fabricated run folder is like."""

    prefix: str = "SYN-S1-CA"
    develop: tuple[str, ...] = ("crc-a", "crc-b")
    external: tuple[str, ...] = ("crc-x",)
    patients: int = 36
    title: str = "MSI from colorectal slides"
    hostile: str = ""
    thumbnails: int = 3
    seed: int = 7
    model_seed: int | None = None
    noise: float = 0.0
    balancing: tuple[str, str] = ("uncertainty", "pcgrad")
    latents: bool = True


def truth(made: Made) -> pd.DataFrame:
    """Patients with labels; a twelfth of the MSI labels is missing."""
    rng = np.random.default_rng(made.seed)
    rows = []
    for cohort in (*made.develop, *made.external):
        for i in range(made.patients):
            latent = rng.normal()
            death = rng.exponential(900 * np.exp(-0.9 * latent))
            censored = rng.uniform(200, 3000)
            rows.append(
                {
                    "patient": f"{made.prefix}{made.hostile}{cohort[-1]}{i:03d}",
                    "cohort": cohort,
                    "role": "develop" if cohort in made.develop else "external",
                    "site": f"{cohort}/{'AB'[i % 2]}",
                    "MSI": np.nan if i % 12 == 11 else float(i % 4 == 0),
                    "Grade": float(rng.integers(3)),
                    "LISS": latent,
                    "OS.time": max(1.0, min(death, censored)),
                    "OS.event": float(death <= censored),
                }
            )
    return pd.DataFrame(rows)


def folds_of(patients: pd.DataFrame) -> list[dict]:
    """Every third patient is tested in a fold, a few of the others choose the epoch."""
    names = patients.loc[patients["role"] == "develop", "patient"].tolist()
    folds = []
    for k in range(FOLDS):
        rest = [p for i, p in enumerate(names) if i % FOLDS != k]
        val = rest[:: max(2, len(rest) // 14)]
        test = [p for i, p in enumerate(names) if i % FOLDS == k]
        folds.append(
            {"repeat": 0, "index": k, "train": [p for p in rest if p not in val], "val": val, "test": test}
        )
    return folds


def predictions_of(patients: pd.DataFrame, folds: list[dict], seed: int) -> pd.DataFrame:
    """Predictions that know something about every task."""
    rng = np.random.default_rng(seed)
    facts = patients.set_index("patient")
    external = patients.loc[patients["role"] == "external", "patient"].tolist()
    rows = []
    for fold in folds:
        for role, names in (("val", fold["val"]), ("test", fold["test"]), ("external", external)):
            for patient in names:
                rows += _rows(facts.loc[patient], patient, fold["index"], role, rng)
    return pd.DataFrame(rows)


def with_noise(predictions: pd.DataFrame, made: Made) -> pd.DataFrame:
    """The predictions of a model that is worse by so much."""
    rng = np.random.default_rng([made.seed, made.model_seed or 0])
    score = predictions["score"].to_numpy()
    probability = (predictions["class"] != "").to_numpy()
    inside = np.where(probability, np.clip(score, 1e-6, 1 - 1e-6), 0.5)
    added = made.noise * rng.normal(size=len(score))
    blurred = np.where(probability, 1 / (1 + np.exp(-np.log(inside / (1 - inside)) - added)), score + added)
    return predictions.assign(score=blurred if made.noise else score)


def latents_of(predictions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Latents of the classification tasks: two dimensions that know the class, two that do not."""
    rng = np.random.default_rng(seed)
    rows = predictions[predictions["class"] != ""]
    rows = rows.sort_values("target").drop_duplicates(
        ["patient", "repeat", "fold", "role", "task"], keep="last"
    )
    known = np.nan_to_num(rows["target"].to_numpy())[:, None] * [2.0, 1.0, 0.0, 0.0]
    vectors = (known + rng.normal(size=(len(rows), 4))).astype(np.float32)
    return rows[["patient", "repeat", "fold", "role", "task"]].assign(latent=list(vectors))


def _rows(fact: pd.Series, patient: str, fold: int, role: str, rng: np.random.Generator) -> Iterator[dict]:
    base = {"patient": patient, "cohort": fact["cohort"], "site": fact["site"], "repeat": 0, "fold": fold}
    base |= {"role": role, "class": "", "target": np.nan, "time": np.nan, "event": np.nan}
    logit = 2.0 * (np.nan_to_num(fact["MSI"]) - 0.4) + rng.normal(0, 1.1)
    msi = {"task": "MSI", "class": "MSI-H", "score": 1 / (1 + np.exp(-logit)), "target": fact["MSI"]}
    liss = {"task": "LISS", "score": 0.6 * fact["LISS"] + rng.normal(0, 0.5), "target": fact["LISS"]}
    risk = 0.8 * fact["LISS"] + rng.normal(0, 0.7)
    survival = {"task": "OS", "score": risk, "time": fact["OS.time"], "event": fact["OS.event"]}
    logits = 1.4 * np.eye(3)[int(fact["Grade"])] + rng.normal(0, 0.9, 3)
    share = np.exp(logits) / np.exp(logits).sum()
    yield from ({**base, **subset} for subset in (msi, liss, survival))
    for k, name in enumerate(CLASSES):
        target = float(fact["Grade"] == k)
        yield {**base, "task": "Grade", "class": name, "score": float(share[k]), "target": target}


def write_run(root: Path, made: Made) -> Path:
    """Write the folder; returns it."""
    patients = truth(made)
    folds = folds_of(patients)
    predictions = predictions_of(patients, folds, made.seed if made.model_seed is None else made.model_seed)
    predictions = with_noise(predictions, made)
    _write_manifest(root, made, patients, folds)
    _write_provenance(root, made)
    _write_training(root, made)
    write_predictions(predictions, root / "evaluation/predictions.parquet")
    latents = latents_of(predictions, made.seed) if made.latents else None
    if latents is not None:
        for (repeat, fold), rows in latents.groupby(["repeat", "fold"]):
            external = rows["role"] == "external"
            folder = root / "folds" / f"{repeat}-{fold}"
            write_latents(rows[~external], folder / FOLD_LATENTS)
            write_latents(rows[external], folder / EXTERNAL_LATENTS)
        write_robustness(robustness(predictions, latents), root / "evaluation")
    write_metrics(evaluate(predictions, PARAMS, made.seed, latents), root / "evaluation", PARAMS)
    stages = pd.DataFrame(
        {"STAGE": [f"S{k % 3}" for k in range(len(patients))]}, index=pd.Index(patients["patient"], name=None)
    )
    known = read_predictions(root / "evaluation/predictions.parquet")
    write_details(known, root / "evaluation", PARAMS, subgroup_values(stages, ["STAGE"]))
    return root


def _write_manifest(root: Path, made: Made, patients: pd.DataFrame, folds: list[dict]) -> None:
    manifest = root / "manifest"
    manifest.mkdir(parents=True)
    rng = np.random.default_rng(made.seed)
    slides = patients[["patient", "cohort"]].assign(slide=patients["patient"] + "-01Z-00-DX1")
    slides = slides.assign(
        path=slides["slide"] + ".svs", mpp=0.5, status="ok", error="", mpp_source="metadata"
    )
    slides["n"] = rng.integers(20, 240, len(slides))
    broken = [f"{made.prefix}{made.hostile}z{i}-DX1" for i in range(2)]
    extra = pd.DataFrame(
        {
            "slide": broken, "patient": broken, "cohort": made.develop[0], "path": broken, "mpp": np.nan,
            "n": 0, "status": ["unreadable", "no_mpp"], "mpp_source": None,
            "error": [f"not a TIFF file {made.hostile}", "no resolution in table, study or metadata"],
        }
    )  # fmt: skip
    patients.to_parquet(manifest / "patients.parquet", index=False)
    pd.concat([slides, extra], ignore_index=True).to_parquet(manifest / "slides.parquet", index=False)
    exclusions = [
        (
            made.develop[0],
            f"{made.prefix}{made.hostile}q1",
            "",
            "has label",
            f"no usable label {made.hostile}",
        ),
        (made.develop[0], broken[0], broken[0], "readable", "unreadable: not a TIFF file"),
        (
            made.develop[0],
            broken[1],
            broken[1],
            "mpp ok",
            "no_mpp: no resolution in table, study or metadata",
        ),
    ]
    columns = ["cohort", "patient", "slide", "stage", "reason"]
    pd.DataFrame(exclusions, columns=columns).to_csv(manifest / "exclusions.csv", index=False)
    loss = {
        "reason": "not a number",
        "patients": 2,
        "expected": False,
        "examples": [f"'{made.hostile}' in row 3"],
    }
    account = {"task": "MSI", "cohort": made.develop[0], "patients": 12, "usable": 10, "losses": [loss]}
    (manifest / "labels.json").write_text(json.dumps([account]), encoding="utf-8")
    flow = []
    for cohort in (*made.develop, *made.external):
        n, more = made.patients, 3 if cohort == made.develop[0] else 0
        for stage, lost in (("in table", 0), ("has label", 1), ("readable", 2), ("mpp ok", 3), ("used", 3)):
            left = n + more - min(lost, more)
            flow.append(
                {"cohort": cohort, "stage": stage, "patients": left, "slides": left, "excluded": lost}
            )
    audit = [
        (c, f"0-{k}", 0, True) for c in ("patient", "slide fingerprint", "external") for k in range(FOLDS)
    ]
    leakage = pd.DataFrame(audit, columns=["check", "fold", "overlap", "ok"])
    leakage.to_csv(manifest / "leakage.csv", index=False)
    few = f"fold 0-1 has 4 MSI-H patients in its inner validation part {made.hostile}".strip()
    for name, value in (
        ("flow", flow),
        ("splits", {"version": 1, "folds": folds}),
        ("warnings", [few]),
        ("table_batches", []),
        ("notes", ["rna of 9 of 10 patients"]),
    ):
        (manifest / f"{name}.json").write_text(json.dumps(value))


def _write_provenance(root: Path, made: Made) -> None:
    folder = root / "provenance"
    folder.mkdir()
    study = {
        "version": 1,
        "name": "crc-msi",
        "seed": made.seed,
        "tasks": [
            {"type": "regression", "name": "LISS", "column": "LISS", "main": False},
            {"type": "binary", "name": "MSI", "column": "isMSIH", "positive": ["MSI-H"], "main": True},
            {"type": "multiclass", "name": "Grade", "column": "GRADE", "classes": {c: c for c in CLASSES}},
            {"type": "survival", "name": "OS"},
        ],
        "model": {"kind": "joint"},
        "balancing": {"weighting": made.balancing[0], "aggregation": made.balancing[1]},
        "features": {"encoder": "handcrafted", "mpp": 0.5, "tile_px": 224},
        "splits": {"scheme": "kfold", "folds": FOLDS},
        "evaluation": PARAMS.model_dump(mode="json"),
        "report": {"title": made.title + made.hostile, "intended_use": None, "sections": {}},
    }
    environment = {
        "equipoise": "0.1.0",
        "code": {"commit": "0123456789abcdef0123", "tree": "clean"},
        "python": "3.11.2",
        "versions": {"torch": "2.13.0", "ray": "2.60.0"},
        "command": f"equipoise run -c study.yaml {made.hostile}".strip(),
    }
    inputs = {"clinical.csv": "ab" * 32, f"slides{made.hostile}.csv": "cd" * 32}
    (folder / "resolved.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "inputs.json").write_text(json.dumps(inputs))
    steps = {
        "validate": {"status": "done", "seconds": 1.2, "at": "2026-11-21T10:00:00+0000", "patients": 108},
        "train": {"status": "done", "seconds": 33.0, "at": "2026-11-21T10:01:00+0000", "folds": FOLDS},
        "report": {"status": "running", "at": "2026-11-21T10:02:00+0000"},
    }
    (root / "status.json").write_text(json.dumps({"status": "partial", "steps": steps}))


def _write_training(root: Path, made: Made) -> None:
    from PIL import Image

    rng = np.random.default_rng(made.seed)
    for k in range(FOLDS):
        epochs = np.arange(1, 13 + k)
        fall = np.exp(-epochs / 5)
        history = pd.DataFrame({"epoch": epochs, "lr": 1e-4})
        for task in ("MSI", "Grade", "LISS", "OS"):
            history[f"train/{task}"] = 0.25 + fall
            history[f"val/{task}"] = 0.5 + fall + 0.02 * epochs + rng.normal(0, 0.02, len(epochs))
        for place, task in enumerate(("MSI", "Grade", "LISS", "OS")):
            history[f"weight/{task}"] = (
                1 + (place - 1.5) * 0.3 * (1 - fall) + rng.normal(0, 0.01, len(epochs))
            )
        history["conflict_rate"] = 0.3 + 0.2 * fall + rng.normal(0, 0.01, len(epochs))
        for a, b in combinations(("MSI", "Grade", "LISS", "OS"), 2):
            history[f"cosine/{a}|{b}"] = (-0.2 if (a, b) == ("MSI", "OS") else 0.1) + 0.05 * fall
        history["monitor"] = history[[c for c in history if str(c).startswith("val/")]].sum(axis=1)
        folder = root / "folds" / f"0-{k}"
        folder.mkdir(parents=True)
        history.to_csv(folder / "history.csv", index=False)
    (root / "qc").mkdir()
    for i in range(made.thumbnails):
        rows, columns = np.mgrid[:300, :420]
        inside = ((rows - 150) / 110) ** 2 + ((columns - 210) / 170) ** 2 < 1
        grain = rng.normal(0, 9, (300, 420))
        pixels = np.full((300, 420, 3), 244.0)
        pixels[inside] = np.array([214, 150 + 8 * i, 196]) + grain[inside, None]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            root / "qc" / f"slide-{i:02d}.jpg", quality=85
        )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[Made], Path]:
    """Writes a run folder of one's own."""

    def make(made: Made) -> Path:
        return write_run(tmp_path / "crc-msi", made)

    return make


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete synthetic run; tests must not change it."""
    return write_run(tmp_path_factory.mktemp("run") / "crc-msi", Made())


@pytest.fixture(scope="session")
def made() -> type[Made]:
    """The description that ``make_run`` takes."""
    return Made


@pytest.fixture(scope="session")
def write() -> Callable[[Path, Made], Path]:
    """Writes a run folder at a place, for fixtures that outlive a test."""
    return write_run

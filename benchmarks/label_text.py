"""Heads on the text of labels against direct heads: BRCA, subtype and survival from RNA, ModalTune's own cases.

Training, validation and test cases are ModalTune's that have RNA in PORPOISE's tables. The same network, epochs and
seeds for every arm; the epoch is chosen on the validation cases. Needs the real tables: ``--data``.

    python -m benchmarks.label_text
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from benchmarks.linear_baselines import SHARED
from equipoise.datasets.cohorts.cases import CaseReader
from equipoise.models.text.params import TextParams
from equipoise.platform.evaluation.metrics import harrell_c
from equipoise.platform.run.context import read_cohorts
from equipoise.platform.run.loading import load_study
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.loop import fit
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.predict import predict
from equipoise.platform.training.targets import fit_targets

RESULTS = Path(__file__).parent / "results" / "label_text.json"
WORDS = {
    "subtype": {
        "site": "breast",
        "words": {"ILC": "invasive lobular carcinoma", "IDC": "invasive ductal carcinoma"},
    },
    "os": {"site": "breast"},
}
BOTH = ["subtype", "os"]
#: Arm → section ``training.text``.
ARMS: dict[str, dict[str, Any] | None] = {
    "direct": None,
    "text_classes": {"labels": WORDS},
    "text_classes_cosine": {"labels": WORDS, "loss": "cosine"},
    "text_both_ordinal": {"labels": WORDS, "tasks": BOTH},
    "text_both_as_published": {
        "labels": WORDS, "tasks": BOTH, "loss": "kl", "ordinal": False, "centre": False,
    },
}  # fmt: skip
NETWORK = {
    "network": "relu",
    "dim": 32,
    "layers": 1,
    "dropout": 0.5,
    "input_dropout": 0.2,
    "modalities": ["rna"],
}


def study_of(data: Path) -> dict[str, Any]:
    """The study whose tables are read."""
    table = str(data / "tcga" / "porpoise" / "tcga_brca_all_clean.csv.zip")
    return {
        "version": 1,
        "name": "label-text",
        "cohorts": [
            {
                "name": "BRCA",
                "role": "develop",
                "clinical": table,
                "omics": {"rna": {"path": table, "suffix": "_rnaseq"}},
            }
        ],
        "tasks": [
            {
                "name": "subtype",
                "type": "binary",
                "column": "oncotree_code",
                "positive": ["ILC"],
                "negative": ["IDC"],
                "exclude": ["MDLC", "IMMC", "MBC", "BRCA", "PD", "ACBC", "SPC", "BRCNOS", "MPT"],
                "main": True,
            },
            {
                "name": "os",
                "type": "survival",
                "time": {"column": "survival_months", "unit": "months"},
                "event": {"column": "censorship", "event_value": "0", "censored_value": "1"},
            },
        ],
        "tables": {"rna": {"transform": "log", "clip": None, "clip_standardised": 5, "components": 40}},
        "model": {"kind": "omics", **NETWORK},
    }


def parts_of(data: Path, known: set[str]) -> dict[str, tuple[str, ...]]:
    """ModalTune's cases that have RNA."""
    parts = {}
    for part in ("train", "val", "test"):
        with gzip.open(data / "tcga" / "modaltune" / f"{part}_brca_cls_feat.json.gz") as file:
            names = [row["case_submitter_id"] for row in json.load(file)["data"]]
        parts[part] = tuple(dict.fromkeys(name for name in names if name in known))
    return parts


def measure(data: Path, seeds: int) -> dict[str, Any]:
    """Means and standard deviations over seeds of each arm's figures on the test cases."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(yaml.safe_dump(study_of(data)))
        study = load_study(file)
        cohorts = read_cohorts(study)
    reader = CaseReader(cohorts, None, role="develop")
    cases = {patient: reader[patient] for patient in cohorts.patients["patient"]}
    parts = parts_of(data, {p for p, case in cases.items() if "rna" in case.omics})
    train, val, test = (CaseList(cases, parts[name]) for name in ("train", "val", "test"))
    found: dict[str, Any] = {}
    for arm, text in ARMS.items():
        wanted = None if text is None else TextParams.model_validate(text)
        targets = fit_targets(cohorts.tasks, train, tables=study.tables, text=wanted)
        params = TrainingParams(
            epochs=60,
            patience=20,
            lr=3e-3,
            batch=64,
            schedule="constant",
            device="cpu",
            probe=False,
            text=wanted,
        )
        rows = []
        for seed in range(seeds):
            model = build_model("omics", NETWORK, targets.shape, targets.heads, seed=seed)
            fit(model, targets, train, val, params, seed=seed)
            rows.append(figures(predict(model, targets, test, role="test", repeat=0, fold=0)))
        found[arm] = {name: [row[name] for row in rows] for name in rows[0]}
        print(arm, {name: f"{np.mean(values):.3f}" for name, values in found[arm].items()}, flush=True)
    means = {
        f"{arm}_{name}": round(float(np.mean(values)), 4)
        for arm, row in found.items()
        for name, values in row.items()
    }
    spreads = {
        f"{arm}_{name}_sd": round(float(np.std(values, ddof=1)), 4)
        for arm, row in found.items()
        for name, values in row.items()
    }
    counts = {f"cases_{name}": len(part) for name, part in parts.items()}
    return {"seeds": seeds} | counts | means | spreads


def figures(predictions: Any) -> dict[str, float]:
    """Balanced accuracy and AUROC of the subtype, C-index of survival."""
    subtype = predictions[predictions["task"] == "subtype"].dropna(subset=["target"])
    survival = predictions[predictions["task"] == "os"].dropna(subset=["time"])
    return {
        "subtype_ba": float(balanced_accuracy_score(subtype["target"], subtype["score"] > 0.5)),
        "subtype_auroc": float(roc_auc_score(subtype["target"], subtype["score"])),
        "os_c": float(harrell_c(survival["time"], survival["event"], survival["score"])),
    }


def main() -> None:
    """Measure, write the results file, print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    if not (arguments.data / "tcga" / "porpoise").is_dir():
        reason = f"no tcga/porpoise in {arguments.data}: give the data folder with --data"
        print(f"skipped: {reason}")
        print(json.dumps({"skipped": reason}))
        return
    logging.getLogger("equipoise").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", category=UserWarning)
    torch.set_num_threads(1)
    result = measure(arguments.data, max(2, arguments.seeds))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

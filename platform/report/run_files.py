"""Reading a run folder, with its federation, for the report.

A missing or broken file is None and is named in ``problems`` or ``missing``.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from equipoise.datasets.atomic_io import read_json
from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.baselines import read_baselines
from equipoise.platform.evaluation.cox_table import read_cox_table
from equipoise.platform.evaluation.detail_tables import read_detail
from equipoise.platform.evaluation.feature_robustness import read_feature_robustness
from equipoise.platform.evaluation.metrics_table import read_metrics
from equipoise.platform.evaluation.predictions import kind_of, read_predictions
from equipoise.platform.evaluation.robustness import read_robustness
from equipoise.platform.explain.tile_scores import TileScores, list_tile_scores, read_tile_scores
from equipoise.platform.renamed import current_record
from equipoise.platform.report.blocks import Missing
from equipoise.platform.yaml_files import read_own


class FileSpec(NamedTuple):
    """A file of the run folder: description, command that creates it, property of ``RunFiles`` that reads it."""

    description: str
    command: str
    attribute: str


FILES = {
    "provenance/resolved.yaml": FileSpec("the resolved study", "equipoise run", "study"),
    "provenance/environment.json": FileSpec("the environment of the run", "equipoise run", "environment"),
    "provenance/inputs.json": FileSpec("hashes of the inputs", "equipoise validate", "inputs"),
    "status.json": FileSpec("the state of the run", "equipoise run", "status"),
    "manifest/patients.parquet": FileSpec("patients and labels", "equipoise validate", "patients"),
    "manifest/slides.parquet": FileSpec("the slides and their statuses", "equipoise extract", "slides"),
    "manifest/exclusions.csv": FileSpec("one row per exclusion", "equipoise validate", "exclusions"),
    "manifest/labels.json": FileSpec("labels used and lost", "equipoise validate", "labels"),
    "manifest/flow.json": FileSpec("the participant flow", "equipoise validate", "flow"),
    "manifest/splits.json": FileSpec("who is in which fold", "equipoise train", "splits"),
    "manifest/leakage.csv": FileSpec("the leakage audit", "equipoise train", "leakage"),
    "manifest/warnings.json": FileSpec("warnings of the run", "equipoise validate", "warnings"),
    "manifest/table_batches.json": FileSpec(
        "tables that carry their batch", "equipoise validate", "table_batches"
    ),
    "manifest/notes.json": FileSpec("remarks on the tables", "equipoise validate", "notes"),
    "qc": FileSpec("thumbnails of the slides", "equipoise extract", "thumbnails"),
    "folds": FileSpec("training history of the folds", "equipoise train", "histories"),
    "evaluation/predictions.parquet": FileSpec("the predictions table", "equipoise train", "predictions"),
    "evaluation/metrics.csv": FileSpec("the metrics table", "equipoise evaluate", "metrics"),
    "evaluation/calibration.csv": FileSpec(
        "calibration of probabilities", "equipoise evaluate", "calibration"
    ),
    "evaluation/calibration_curves.csv": FileSpec(
        "calibration curves", "equipoise evaluate", "calibration_curves"
    ),
    "evaluation/decision_curves.csv": FileSpec("decision curves", "equipoise evaluate", "decision_curves"),
    "evaluation/operating_points.csv": FileSpec(
        "decisions at operating points", "equipoise evaluate", "operating_points"
    ),
    "evaluation/survival_calibration.csv": FileSpec(
        "predicted and observed survival at a horizon", "equipoise evaluate", "survival_calibration"
    ),
    "evaluation/survival_decision_curves.csv": FileSpec(
        "decision curves at a horizon", "equipoise evaluate", "survival_decision_curves"
    ),
    "evaluation/metrics.json": FileSpec("parameters of the evaluation", "equipoise evaluate", "confidence"),
}

_SYNTHETIC_ID = re.compile(r"^SYN-")


@dataclass(frozen=True)
class Task:
    """A task as the report needs it."""

    name: str
    kind: str
    main: bool
    classes: tuple[str, ...] = ()


class RunFiles:
    """The files of a run folder, each read once, when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.problems: dict[str, str] = {}

    def missing(self, *names: str) -> list[Missing]:
        """A block for each of the files that is absent or unreadable."""
        blocks = []
        for name in names:
            spec = FILES[name]
            getattr(self, spec.attribute)  # reading it finds problems
            absent = not (self.folder / name).exists()
            if absent or name in self.problems:
                blocks.append(Missing(name, spec.description, spec.command, self.problems.get(name, "")))
        return blocks

    @cached_property
    def study(self) -> dict[str, Any]:
        """The resolved study; empty if there is none."""
        return self._mapping("provenance/resolved.yaml", _yaml)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware, commit."""
        return self._mapping("provenance/environment.json", _json)

    @cached_property
    def inputs(self) -> Any:
        """Hashes of the inputs, in whatever shape the run wrote them."""
        return self._read("provenance/inputs.json", _json)

    @cached_property
    def status(self) -> dict[str, Any]:
        """State of the run."""
        return self._mapping("status.json", _json)

    @cached_property
    def patients(self) -> pd.DataFrame | None:
        """Patients with cohort, role, site and targets."""
        return self._table("manifest/patients.parquet", pd.read_parquet, "patient", "cohort", "role", "site")

    @cached_property
    def slides(self) -> pd.DataFrame | None:
        """Slides with their status (``listed`` as long as no slide was opened)."""
        table = self._table("manifest/slides.parquet", pd.read_parquet, "slide", "patient", "cohort")
        return table if table is None or "status" in table else table.assign(status="listed")

    @property
    def used_slides(self) -> pd.DataFrame | None:
        """Slides that are used, or that are only listed so far."""
        return None if self.slides is None else self.slides[self.slides["status"].isin(["ok", "listed"])]

    @cached_property
    def exclusions(self) -> pd.DataFrame | None:
        """Every exclusion with its reason; ``task`` is empty where a patient or slide as a whole is left out."""
        table = self._table("manifest/exclusions.csv", _csv, "cohort", "patient", "slide", "stage", "reason")
        return table if table is None or "task" in table else table.assign(task="")

    @property
    def excluded(self) -> pd.DataFrame | None:
        """Exclusions of whole patients and slides."""
        return None if self.exclusions is None else self.exclusions[self.exclusions["task"] == ""]

    @cached_property
    def labels(self) -> list[dict[str, Any]]:
        """Per task and cohort: patients, those with a label, and why the others have none."""
        name, fields = "manifest/labels.json", {"reason", "patients", "expected", "examples"}
        accounts = self._records(name, "task", "cohort", "patients", "usable", "losses")
        losses = [loss for account in accounts for loss in account["losses"] or ()]
        if any(not isinstance(loss, dict) or fields - set(loss) for loss in losses):
            self.problems[name] = f"losses are not records with {', '.join(sorted(fields))}"
            return []
        return accounts

    @cached_property
    def leakage(self) -> pd.DataFrame | None:
        """Leakage audit; ``ok`` as booleans."""
        table = self._table("manifest/leakage.csv", _csv, "check", "fold", "overlap", "ok")
        return None if table is None else table.assign(ok=table["ok"].str.lower().isin(["true", "1", "yes"]))

    @cached_property
    def flow(self) -> list[dict[str, Any]]:
        """Counts per cohort and stage."""
        return self._records("manifest/flow.json", "cohort", "stage", "patients")

    @cached_property
    def splits(self) -> list[dict[str, Any]]:
        """Folds with their patients."""
        fields = ("repeat", "index", "train", "val", "test")
        return self._records("manifest/splits.json", *fields, inside="folds")

    @cached_property
    def warnings(self) -> list[str]:
        """Warnings of the run."""
        return self._sentences("manifest/warnings.json")

    @cached_property
    def table_batches(self) -> list[dict[str, Any]]:
        """Tables that carry the batch they were prepared in, with the tasks that it spoils."""
        return self._records(
            "manifest/table_batches.json", "modality", "reason", "groups", "tasks", "sentence"
        )

    @cached_property
    def notes(self) -> list[str]:
        """Remarks on how the tables were read."""
        return self._sentences("manifest/notes.json")

    @cached_property
    def thumbnails(self) -> list[Path]:
        """Thumbnails in name order."""
        return sorted((self.folder / "qc").glob("*.jpg"))

    @cached_property
    def histories(self) -> dict[str, pd.DataFrame]:
        """Training history by fold name ``<repeat>-<fold>``, and by ``<repeat>-<fold>, member <k>`` in an ensemble."""
        histories: dict[str, pd.DataFrame] = {}
        for path in sorted((self.folder / "folds").glob("*/history.csv")):
            name = path.relative_to(self.folder).as_posix()
            table = self._table(name, pd.read_csv, "epoch")
            if table is not None and len(table):
                histories |= _members(path.parent.name, table)
        return histories

    @cached_property
    def fold_records(self) -> dict[str, dict[str, Any]]:
        """What each fold says of its training (``config.json``), by fold name."""
        paths = sorted((self.folder / "folds").glob("*/config.json"))
        names = {path.parent.name: path.relative_to(self.folder).as_posix() for path in paths}
        return {fold: self._mapping(name, _json) for fold, name in names.items()}

    @cached_property
    def convergence_warnings(self) -> list[str]:
        """What folds warn of in their training: each sentence once, with the folds that it is about."""
        about: dict[str, list[str]] = {}
        for fold, record in self.fold_records.items():
            for sentence in record.get("warnings") or []:
                about.setdefault(str(sentence), []).append(fold)
        return [f"Fold {', '.join(folds)}: {sentence}." for sentence, folds in about.items()]

    @cached_property
    def predictions(self) -> pd.DataFrame | None:
        """The predictions table, validated."""
        return self._read("evaluation/predictions.parquet", read_predictions)

    @cached_property
    def metrics(self) -> pd.DataFrame | None:
        """The metrics table."""
        return self._read("evaluation/metrics.csv", read_metrics)

    @cached_property
    def baselines(self) -> pd.DataFrame | None:
        """The table of baselines; None if the study has switched them off."""
        return self._read("evaluation/baselines.csv", read_baselines)

    @cached_property
    def branches(self) -> pd.DataFrame | None:
        """The table of what branches say alone; None for a model without branches."""
        return self._read("evaluation/branches.csv", read_baselines)

    @cached_property
    def transfer(self) -> pd.DataFrame | None:
        """The table of transfer to external cohorts; None unless the study asks for it."""
        return self._read("evaluation/transfer.csv", read_baselines)

    @cached_property
    def calibration(self) -> pd.DataFrame | None:
        """Slope, intercept, expected calibration error and Brier score; None without a classification task."""
        return self._read("evaluation/calibration.csv", read_detail)

    @cached_property
    def calibration_curves(self) -> pd.DataFrame | None:
        """Observed against predicted shares; None without a classification task."""
        return self._read("evaluation/calibration_curves.csv", read_detail)

    @cached_property
    def decision_curves(self) -> pd.DataFrame | None:
        """Net benefit over thresholds; None without a classification task."""
        return self._read("evaluation/decision_curves.csv", read_detail)

    @cached_property
    def operating_points(self) -> pd.DataFrame | None:
        """Shares of 2x2 tables at every operating point; None without a binary task."""
        return self._read("evaluation/operating_points.csv", read_detail)

    @cached_property
    def survival_calibration(self) -> pd.DataFrame | None:
        """Predicted and observed shares with an event at a horizon; None without a survival task."""
        return self._read("evaluation/survival_calibration.csv", read_detail)

    @cached_property
    def survival_decision_curves(self) -> pd.DataFrame | None:
        """Net benefit over thresholds at a horizon; None without a survival task."""
        return self._read("evaluation/survival_decision_curves.csv", read_detail)

    @cached_property
    def subgroups(self) -> pd.DataFrame | None:
        """Metrics of subgroups; None where the study names none."""
        return self._read("evaluation/subgroups.csv", read_detail)

    @cached_property
    def robustness(self) -> pd.DataFrame | None:
        """Robustness of embeddings across centres; None with one centre or without latents."""
        return self._read("evaluation/robustness.csv", read_robustness)

    @cached_property
    def feature_robustness(self) -> pd.DataFrame | None:
        """Robustness of the encoder's features across centres; None with one centre or without slides."""
        return self._read("evaluation/feature_robustness.csv", read_feature_robustness)

    @cached_property
    def cox(self) -> pd.DataFrame | None:
        """Hazard ratios of predicted risks; None without a survival task."""
        return self._read("evaluation/cox.csv", read_cox_table)

    @cached_property
    def tile_scores(self) -> list[tuple[Path, TileScores]]:
        """Maps of slides with their files, in name order; empty before ``equipoise explain``."""
        paths = list_tile_scores(self.folder / "explain")
        read = [(p, self._read(p.relative_to(self.folder).as_posix(), read_tile_scores)) for p in paths]
        return [(path, scores) for path, scores in read if scores is not None]

    @cached_property
    def metric_rows(self) -> list[dict[str, Any]]:
        """The metrics table as records, in its order; empty if there is none."""
        return [] if self.metrics is None else self.metrics.to_dict("records")

    @cached_property
    def confidence(self) -> float:
        """Level of the intervals in the metrics table."""
        return float(self.evaluation.get("confidence") or 0.95)

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Parameters that the metrics were computed with, else those of the study."""
        written = self._mapping("evaluation/metrics.json", _json).get("parameters") or {}
        return {**(self.study.get("evaluation") or {}), **written}

    @cached_property
    def tasks(self) -> list[Task]:
        """Tasks in the study's order, the main one first; from the predictions if there is no study."""
        rows = [t for t in self.study.get("tasks") or [] if isinstance(t, dict) and t.get("name")]
        tasks = [Task(str(t["name"]), str(t.get("type", "")), bool(t.get("main")), _classes(t)) for t in rows]
        if not tasks and self.predictions is not None:
            tasks = [Task(str(n), kind_of(g), False) for n, g in self.predictions.groupby("task", sort=True)]
        if tasks and not any(t.main for t in tasks):
            tasks[0] = replace(tasks[0], main=True)
        return sorted(tasks, key=lambda t: not t.main)

    @cached_property
    def synthetic(self) -> bool:
        """Whether any patient is synthetic: stated by the run, or recognised by a ``SYN-`` barcode.

        One synthetic patient is enough: results of a mixed study are not clinical either.
        """
        stated = [self.study.get("synthetic"), self.status.get("synthetic")]
        stated.append(self.inputs.get("synthetic") if isinstance(self.inputs, dict) else None)
        tables = [self.patients, self.predictions]
        recognised = [
            t["patient"].astype(str).str.match(_SYNTHETIC_ID).any() for t in tables if t is not None
        ]
        return any(bool(s) for s in stated) or any(recognised)

    def _read(self, name: str, reader: Callable[[Path], Any]) -> Any:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return reader(path)
        except (DataError, OSError, ValueError, KeyError) as broken:
            self.problems[name] = f"{type(broken).__name__}: {broken}"
            return None

    def read_table(self, name: str) -> pd.DataFrame | None:
        """A CSV file of the run folder with its own types; None if it is absent or unreadable."""
        return self._read(name, lambda path: pd.read_csv(path, keep_default_na=False, na_values=[""]))

    def _sentences(self, name: str) -> list[str]:
        value = self._read(name, _json)
        if value is not None and not isinstance(value, list):
            self.problems[name] = "is not a list of sentences"
        return [str(sentence) for sentence in value] if isinstance(value, list) else []

    def _mapping(self, name: str, reader: Callable[[Path], Any]) -> dict[str, Any]:
        value = self._read(name, reader)
        if value is not None and not isinstance(value, dict):
            self.problems[name] = f"holds a {type(value).__name__}, a mapping is expected"
        return value if isinstance(value, dict) else {}

    def _records(self, name: str, *fields: str, inside: str = "") -> list[dict[str, Any]]:
        """A list of records with the given fields, as the whole file or under the key ``inside``."""
        value = self._read(name, _json)
        if inside and isinstance(value, dict):
            value = value.get(inside, ())
        if value is None:
            return []
        if not isinstance(value, list) or any(not isinstance(r, dict) or set(fields) - set(r) for r in value):
            self.problems[name] = f"is not a list of records with {', '.join(fields)}"
            return []
        return value

    def _table(self, name: str, reader: Callable[[Path], Any], *columns: str) -> pd.DataFrame | None:
        table = self._read(name, reader)
        absent = [] if table is None else [c for c in columns if c not in table]
        if absent:
            self.problems[name] = f"lacks the columns {', '.join(absent)}"
        return None if absent else table


def _classes(task: dict[str, Any]) -> tuple[str, ...]:
    """Classes of a multiclass task in the order of their numbers; the study maps values to classes."""
    classes = task.get("classes") or ()
    names = classes.values() if isinstance(classes, dict) else classes
    return tuple(dict.fromkeys(str(name) for name in names))


def _json(path: Path) -> Any:
    return read_json(path)


def _members(fold: str, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The history of a fold, or that of each member of its ensemble."""
    if "member" not in table:
        return {fold: table}
    return {
        f"{fold}, member {int(member) + 1}": part.drop(columns="member").reset_index(drop=True)
        for member, part in table.groupby("member")
    }


def _yaml(path: Path) -> Any:
    return read_own(path)


def _csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


FEDERATION_COMMAND = "equipoise federate"
#: File → description.
FEDERATION_FILES = {
    "federated/setting.json": "clients, settings and costs of server aggregations",
    "federated/sites.csv": "results by site",
    "federated/rounds.jsonl": "history of the rounds",
    "federated/traffic.csv": "bytes sent by each client and what the server did with its updates",
}


class FederationFiles:
    """The files of a federation, read once.

    Parameters
    ----------
    folder
        The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.missing: list[Missing] = []
        self.setting: dict[str, Any] = current_record(
            self._read("federated/setting.json", _json_mapping) or {}
        )
        self.sites: pd.DataFrame | None = self._read("federated/sites.csv", _sites)
        self.rounds: pd.DataFrame | None = self._read("federated/rounds.jsonl", _json_lines)
        self.traffic: pd.DataFrame | None = self._read("federated/traffic.csv", _traffic)

    def _read(self, name: str, reader: Callable[[Path], Any]) -> Any:
        path, problem = self.folder / name, ""
        try:
            if path.exists():
                return reader(path)
        except (OSError, ValueError, KeyError) as broken:
            problem = f"{type(broken).__name__}: {broken}"
        self.missing.append(Missing(name, FEDERATION_FILES[name], FEDERATION_COMMAND, problem))
        return None


def _json_mapping(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _sites(path: Path) -> pd.DataFrame:
    # NA is the code of a tissue source site and does not mean missing.
    texts = dict.fromkeys(
        ("plan", "method", "role", "scope", "client", "task", "kind", "metric", "note"), str
    )
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=texts)
    return table.astype({"n": "Int64", "n_pos": "Int64"}).fillna({"note": ""})


def _traffic(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, dtype={"client": str, "plan": str, "fold": str})


def _json_lines(path: Path) -> pd.DataFrame:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return pd.DataFrame(rows)

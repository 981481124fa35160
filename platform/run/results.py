"""The results of a run folder for somebody's own analysis: tables as pandas, with nothing to configure."""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.datasets.remote.addresses import is_remote
from equipoise.platform.errors import DataError
from equipoise.platform.report.run_files import FILES, RunFiles
from equipoise.platform.run.remote_folder import CommittedRun


class RunResults:
    """What a run has left in its folder; every table is read when it is first asked for.

    Every property raises :class:`DataError` if its file is not there yet (naming the command that writes it) or cannot
    be read.

    Parameters
    ----------
    folder
        ``runs/<study>``, or the address of a run, of which the last commit is read.

    Raises
    ------
    DataError
        If this is no run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self._copy = CommittedRun(str(folder)) if is_remote(folder) else None  # stays as long as this object
        self.folder = Path(folder) if self._copy is None else self._copy.root
        self._files = RunFiles(self.folder)
        if not (self.folder / "status.json").is_file():
            raise DataError(
                "no run here: the folder has no status.json",
                where=str(self.folder),
                fix="name the folder that -o named, or runs/<name of the study>",
            )

    @property
    def status(self) -> dict[str, Any]:
        """Content of ``status.json``: ``status`` of the last job, and ``steps`` with what each has done."""
        return self._require("status.json")

    @property
    def study(self) -> dict[str, Any]:
        """The study with every setting written out."""
        return self._require("provenance/resolved.yaml")

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per patient, repeat, fold, role, task and class; ``score`` is a probability, a value or a log risk.

        ``target``, or ``time`` in days and ``event``, are NaN where the patient has no label.
        """
        return self._require("evaluation/predictions.parquet")

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per role, cohort, site, task, class, predictor, metric and fold with ``value``, ``low`` and ``high``.

        NaN is not estimable; ``note`` says why.
        """
        return self._require("evaluation/metrics.csv")

    @cached_property
    def folds(self) -> pd.DataFrame:
        """One row per patient and fold, columns ``repeat fold part patient``; ``part`` is train, val or test."""
        rows = [
            (fold["repeat"], fold["index"], part, patient)
            for fold in self._require("manifest/splits.json")
            for part in ("train", "val", "test")
            for patient in fold[part]
        ]
        return pd.DataFrame(rows, columns=["repeat", "fold", "part", "patient"])

    @cached_property
    def history(self) -> pd.DataFrame:
        """Training by epoch: the rows of every fold's ``history.csv``; ``fold`` is ``<repeat>-<fold>``."""
        histories = self._require("folds")
        if not histories:
            raise DataError("no fold was trained here", where=str(self.folder), fix="run `equipoise train`")
        return pd.concat([table.assign(fold=name) for name, table in histories.items()], ignore_index=True)

    @cached_property
    def manifest(self) -> dict[str, pd.DataFrame]:
        """``patients`` with labels and sites, ``slides`` with status, ``exclusions`` with reasons, and ``flow``."""
        tables = {name: self._require(f"manifest/{name}.parquet") for name in ("patients", "slides")}
        flow = pd.DataFrame(self._require("manifest/flow.json"))
        return tables | {"exclusions": self._require("manifest/exclusions.csv"), "flow": flow}

    def __repr__(self) -> str:
        status, steps = self.status, self.status.get("steps", {})
        done = [name for name, step in steps.items() if step.get("status") == "done"]
        name = self.study.get("name", "") if (self.folder / "provenance" / "resolved.yaml").exists() else ""
        return f"<RunResults {name} {status.get('status', '')}: {', '.join(done) or 'nothing'} done; {self.folder}>"

    def _require(self, name: str) -> Any:
        """The content of a file of the run."""
        for block in self._files.missing(name):
            problem = block.problem or "not written yet"
            raise DataError(
                f"{block.what}: {problem}", where=str(self.folder / name), fix=f"run `{block.command}`"
            )
        return getattr(self._files, FILES[name].attribute)

"""The run folder: where things are, what is done.

A file that exists is a whole file (:mod:`equipoise.datasets.whole_files`). ``status.json`` says which steps are done,
``events.jsonl`` what happened when.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from equipoise.datasets.whole_files import read_json, write_json
from equipoise.platform.errors import StudyError
from equipoise.platform.study import Study, settled_part

#: Steps of a run in their order.
STEPS = ("validate", "extract", "train", "evaluate", "federate", "search", "report")
#: Steps that do nothing without this section of the study.
SECTIONS = {"federate": "federation", "search": "search"}


class RunFolder:
    """``runs/<study>/``: paths of its parts, status, events.

    Parameters
    ----------
    root
        The folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.provenance = self.root / "provenance"
        self.manifest = self.root / "manifest"
        self.qc = self.root / "qc"
        self.folds = self.root / "folds"
        self.federated = self.root / "federated"
        self.search = self.root / "search"
        self.evaluation = self.root / "evaluation"
        self.tensorboard = self.root / "tb"
        self.report = self.root / "report.html"
        self.status_file = self.root / "status.json"
        self.events_file = self.root / "events.jsonl"

    @classmethod
    def open(cls, study: Study, out: str | None, resume: str) -> "RunFolder":
        """The run folder of a study, checked to belong to it.

        Parameters
        ----------
        study
            The study about to run.
        out
            Folder given on the command line; by default ``runs/<name>`` below the current folder.
        resume
            ``auto`` goes on where a run stopped, ``must`` requires one, ``never`` moves an earlier one aside.

        Raises
        ------
        StudyError
            If the folder holds a run of a study that differs in something that changes predictions.
        """
        folder = cls(Path(out) if out else Path("runs") / study.name)
        earlier = folder.provenance / "resolved.yaml"
        if resume == "must" and not earlier.exists():
            raise StudyError(
                "--resume must: there is no run to go on with",
                where=str(folder.root),
                fix="leave --resume out",
            )
        if resume == "never" and folder.root.exists() and any(folder.root.iterdir()):
            folder._move_aside(study)
        elif earlier.exists():
            folder._check_same(study, yaml.safe_load(earlier.read_text(encoding="utf-8")))
        return folder

    def _check_same(self, study: Study, earlier: dict[str, Any]) -> None:
        before, now = settled_part(earlier), settled_part(study.resolved())
        changed = [path for key in now for path in differences(before.get(key), now[key], key)]
        if changed:
            shown = "\n".join(f"  {line}" for line in changed[:12])
            more = f"\n  … and {len(changed) - 12} more" if len(changed) > 12 else ""
            raise StudyError(
                f"this folder holds a run of another study; it differs in\n{shown}{more}",
                where=str(self.root),
                fix="choose another folder with -o, or --resume never to move the earlier run aside",
            )

    def _move_aside(self, study: Study) -> None:
        if not (self.provenance / "resolved.yaml").exists():
            raise StudyError(
                "--resume never: the folder is not empty and holds no run, so it is left alone",
                where=str(self.root),
                fix="choose another folder with -o",
            )
        if study.file.is_relative_to(self.root):
            raise StudyError(
                "--resume never: the study file lies in this run folder and would move with it",
                where=str(self.root),
                fix="choose another folder with -o",
            )
        number = 1
        while (target := self.root.with_name(f"{self.root.name}.{number}")).exists():
            number += 1
        self.root.rename(target)

    def status(self) -> dict[str, Any]:
        """What ``status.json`` says; an empty run where it is absent."""
        return read_json(self.status_file, {"status": "new", "steps": {}})

    def to_do(self) -> list[str]:
        """Steps that are not done, in their order; some only where the study has a section for them."""
        steps = self.status()["steps"]
        left = [name for name in STEPS if steps.get(name, {}).get("status") != "done"]
        resolved = self.provenance / "resolved.yaml"
        study = yaml.safe_load(resolved.read_text(encoding="utf-8")) if resolved.exists() else {}
        return [name for name in left if name not in SECTIONS or study.get(SECTIONS[name]) is not None]

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Record a step: running, then done with what the body put into the dictionary, or failed with the reason.

        A body that sets ``status`` to ``partial`` says that there is more to do.
        """
        self._note(name, {"status": "running"})
        started = time.monotonic()
        facts: dict[str, Any] = {}
        try:
            yield facts
        except BaseException as error:
            reason = str(error) or type(error).__name__
            self._note(name, {"status": "failed", "error": reason, "seconds": _since(started), **facts})
            raise
        self._note(name, {"status": "done", "seconds": _since(started), **facts})

    def _note(self, step: str, facts: dict[str, Any]) -> None:
        status = self.status()
        if facts["status"] == "running" and step != "validate":
            # What comes after a step that runs again is no longer what the run folder says it is.
            for later in STEPS[STEPS.index(step) + 1 :]:
                status["steps"].pop(later, None)
        status["steps"][step] = {**facts, "at": _now()}
        write_json(self.status_file, {"status": facts["status"], "at": _now(), "steps": status["steps"]})
        self.event(step, facts)

    def finish(self, outcome: dict[str, Any]) -> None:
        """Write how the job that just ended ended; nothing of an earlier job's outcome stays."""
        steps = self.status()["steps"]
        write_json(self.status_file, {**outcome, "to_do": self.to_do(), "at": _now(), "steps": steps})

    def event(self, name: str, facts: dict[str, Any]) -> None:
        """Append one line to ``events.jsonl``."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self.events_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": _now(), "event": name, **facts}, default=str) + "\n")


def differences(before: Any, after: Any, path: str) -> list[str]:
    """Lines ``path: before → after`` for every leaf that differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [
            line for key in keys for line in differences(before.get(key), after.get(key), f"{path}.{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for i, (b, a) in pairs for line in differences(b, a, f"{path}.{i}")]
    return [] if before == after else [f"{path}: {before!r} → {after!r}"]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _since(started: float) -> float:
    return round(time.monotonic() - started, 2)

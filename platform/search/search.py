"""A search from beginning to end: whom it sees, what it varies, what is left to do, who wins.

Reads the records of finished trials first, runs the rest, writes ``trials.parquet``, ``best.json`` and ``best.yaml``.
Every file of ``search/`` is made from the records and the study; a search that was killed at any time goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.whole_files import read_json, write_json
from equipoise.platform.errors import StudyError, ToleranceError
from equipoise.platform.search.best import write_best
from equipoise.platform.search.configuration import of_study
from equipoise.platform.search.generate import generate
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.remembered import RememberedCases
from equipoise.platform.search.searchers import Searcher, build_searcher
from equipoise.platform.search.selection import choose
from equipoise.platform.search.space import Config, Space
from equipoise.platform.search.trial import (
    Material,
    check_unseen,
    run_trial,
    trials_folder,
    unfinished,
)
from equipoise.platform.search.trials import Trial, read_trials, write_table

if TYPE_CHECKING:
    from equipoise.datasets.cohort import Cohorts
    from equipoise.platform.study import Study
    from equipoise.platform.work import Work

log = logging.getLogger("equipoise")


@dataclass(frozen=True)
class Prepared:
    """What a search consists of before its first trial.

    Parameters
    ----------
    study, params
        The study, and its ``search`` section or the defaults.
    space
        What is varied.
    material
        What trials share.
    seed
        Of the search.
    searched, held_out
        Development patients that trials see, and those they do not.
    cohorts
        The searched patients and nobody else.
    identity
        What records must agree on to belong to this search.
    """

    study: Study
    params: SearchParams
    space: Space
    material: Material
    seed: int
    searched: tuple[str, ...]
    held_out: tuple[str, ...]
    cohorts: Cohorts
    identity: dict[str, Any]


def prepare(work: Work) -> Prepared:
    """Space, hold-out, inner folds and cases of a study whose features are there.

    Raises
    ------
    DataError
        If too few patients are left to hold out or to search on, or a trial could see who is kept from it.
    """
    from equipoise.datasets.cases import CaseReader
    from equipoise.platform.search.federated import deal, identity_of
    from equipoise.platform.search.patients import hold_out, inner_folds, only

    study = work.study
    params = study.search or SearchParams()
    seed = study.seed if params.seed is None else params.seed
    work.usable.require_learnable()
    searched, held_out = hold_out(work.usable, study.tasks, params.holdout, study.splits.scheme, seed)
    cohorts = only(work.usable, searched)
    folds = tuple(inner_folds(cohorts, study.tasks, study.splits, params.folds, seed, params.seeds))
    cases = RememberedCases(CaseReader(cohorts, work.tiles, role="develop"))
    clients = deal(study, cohorts.patients, work.usable.patients) if study.federation is not None else ()
    material = Material(study.resolved(), cases, folds, params.metric, clients)
    external = work.usable.patients[work.usable.patients["role"] == "external"]["patient"]
    check_unseen(material, dict.fromkeys(held_out, "hold-out") | dict.fromkeys(external, "external cohort"))
    space = generate(study, params)
    contents = {patient: work.contents[patient] for patient in searched}
    identity = _identity(study, params, seed, contents, work.features) | {
        "federation": identity_of(study.federation, clients)
    }
    return Prepared(study, params, space, material, seed, searched, held_out, cohorts, identity)


def run_search(work: Work) -> dict[str, Any]:
    """Run what is left of the search of a study, and choose.

    Raises
    ------
    StudyError
        If the folder holds records of another search.
    ToleranceError
        If more trials failed than ``search.max_fail`` allows; the others are kept and one of them has been chosen.
    """
    from equipoise.platform.search.trackers import Tracked, open_trackers

    prepared = prepare(work)
    params, folder = prepared.params, work.folder.search
    require_same_search(folder, prepared.identity)
    finished = read_trials(trials_folder(folder))
    searcher, count = searcher_of(prepared, finished)
    left = to_do(finished, count)
    log.info(
        "search trials=%d finished=%d patients=%d held_out=%d folds=%d metric=%s",
        count, len(finished), len(prepared.searched), len(prepared.held_out), len(prepared.material.folds),
        params.metric,
    )  # fmt: skip
    tracked = Tracked.of(work.study, prepared.space, params.metric, work.folder.root)
    with open_trackers(params.track, tracked) as track:
        for trial in finished:
            track(trial)  # written once, however often it is told
        if left:
            on_end = Progress(len(finished), count, track)
            _run(left, searcher, prepared, folder, work.study, on_end)
    return conclude(prepared, folder, count)


def _run(
    left: Sequence[int],
    searcher: Searcher,
    prepared: Prepared,
    folder: Path,
    study: Study,
    on_end: Progress,
) -> None:
    """Run the trials that have no record, on Ray."""
    from equipoise.platform.search.driver import run_population, run_trials
    from equipoise.platform.search.population import first_settings
    from equipoise.platform.session import ray_session

    # Clients take turns in the process of the trial: no workers of its own.
    alone = {} if study.federation is None else {"workers": 1}
    place: dict[str, Any] = {"training": study.training.model_copy(update=alone), "on_end": on_end}
    with ray_session(study.resources):
        if prepared.params.population:
            first = first_settings(prepared.space, {index: searcher.ask(index) for index in left}, study)
            run_population(first, prepared.space, prepared.material, prepared.params, folder, **place)
        else:
            started = begun(prepared, folder)
            run_trials(left, searcher, prepared.material, prepared.params, folder, started=started, **place)


def run_inline(prepared: Prepared, folder: Path) -> list[Trial]:
    """The same trials one after the other in this process, without Ray and without a scheduler."""
    require_same_search(folder, prepared.identity)
    finished = read_trials(trials_folder(folder))
    searcher, count = searcher_of(prepared, finished)
    started = begun(prepared, folder)
    for index in to_do(finished, count):
        config = started.get(index)
        trial = run_trial(index, searcher.ask(index) if config is None else config, prepared.material, folder)
        searcher.tell(trial)
    return read_trials(trials_folder(folder))


def searcher_of(prepared: Prepared, finished: Sequence[Trial]) -> tuple[Searcher, int]:
    """The searcher, told of all finished trials, and the number of trials in all."""
    searcher, count = build_searcher(
        prepared.space, prepared.params, prepared.study.tasks, prepared.seed, told=len(finished)
    )
    for trial in finished:
        searcher.tell(trial)
    return searcher, count


def to_do(finished: Sequence[Trial], count: int) -> list[int]:
    """Numbers of trials without a record."""
    done = {trial.index for trial in finished}
    return [index for index in range(count) if index not in done]


def begun(prepared: Prepared, folder: Path) -> dict[int, Config]:
    """Configurations of trials that are to go on, and of the first one: the study as written."""
    return unfinished(folder) | {0: of_study(prepared.study, prepared.space)}


def conclude(prepared: Prepared, folder: Path, count: int) -> dict[str, Any]:
    """Table, winner and best study of a search; facts for the result line."""
    from equipoise.platform.search.analysis import write_standing

    params = prepared.params
    trials = [trial for trial in read_trials(trials_folder(folder)) if trial.index < count]
    write_table(trials, folder / "trials.parquet")
    write_standing(folder, synthetic=prepared.study.synthetic)
    failed = [trial for trial in trials if trial.status == "failed"]
    facts: dict[str, Any] = {
        "trials": len(trials),
        "failed": len(failed),
        "pruned": sum(trial.status == "pruned" for trial in trials),
    }
    if any(trial.ok for trial in trials):
        winner = choose(trials, params)
        write_best(prepared.study, winner, trials, params, folder)
        facts |= {"best": winner.name, params.metric: round(winner.objective, 4)}
    if len(failed) > params.max_fail * len(trials):
        raise ToleranceError(
            f"{len(failed)} of {len(trials)} trials failed, more than search.max_fail allows "
            f"({len(failed) / len(trials):.1%} > {params.max_fail:.1%})\n"
            + "\n".join(f"  {trial.name}: {trial.reason}" for trial in failed[:20]),
            where=str(trials_folder(folder)),
            fix="mend what the reasons say, or raise search.max_fail; all good trials are kept. A record that is "
            "deleted is run again",
        )
    return facts


def require_same_search(folder: Path, identity: Mapping[str, Any]) -> None:
    """Note what the records of this folder are of; refuse those of another search.

    Raises
    ------
    StudyError
        Naming what differs.
    """
    from equipoise.platform.workspace import differences

    path = folder / "made_by.json"
    earlier = read_json(path)
    if earlier is None:
        write_json(path, identity)
        return
    now = json.loads(json.dumps(identity))
    if changed := [line for key in now for line in differences(earlier.get(key), now[key], key)]:
        raise StudyError(
            "the trials in this folder are of another search; it differs in\n"
            + "\n".join(f"  {c}" for c in changed[:12]),
            where=str(folder),
            fix="undo the change, choose another folder with -o, or delete search/ to start anew",
        )


class Progress:
    """A line of the log for every trial that ends; dashboards are told, too."""

    def __init__(self, done: int, count: int, track: Callable[[Trial], None]) -> None:
        self.done = done
        self.count = count
        self.track = track

    def __call__(self, trial: Trial) -> None:
        """Count it."""
        self.done += 1
        text = f"{trial.metric}={trial.objective:.4f}" if trial.folds else ""
        log.info(
            "search %d/%d trial=%s status=%s %s %s",
            self.done,
            self.count,
            trial.name,
            trial.status,
            text,
            trial.reason,
        )
        self.track(trial)


def _identity(
    study: Study, params: SearchParams, seed: int, contents: Mapping[str, str], features: str
) -> dict[str, Any]:
    """Everything that the numbers of a trial are a function of, besides its configuration; plain data."""
    from equipoise.platform.study import settled_part

    rules = params.model_dump(
        mode="json",
        include={"searcher", "scheduler", "metric", "space", "folds", "seeds", "holdout", "levels"},
    )
    if params.searcher != "grid":
        rules.pop("levels")
    if params.searcher in ("random", "grid") and params.scheduler == "none":
        rules.pop("metric")  # the same trials, whatever they are ranked by
    digest = hashlib.sha256("\n".join(f"{p}: {contents[p]}" for p in sorted(contents)).encode()).hexdigest()[
        :16
    ]
    return {
        "search": rules,
        "seed": seed,
        "study": settled_part(study.resolved()),
        "patients": digest,
        "features": features,
    }

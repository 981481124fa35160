"""A search from beginning to end: its patients and space, the trials that remain, and the winner.

Reads the records of finished trials, runs the remaining ones, writes ``trials.parquet``, ``best.json`` and
``best.yaml``. Every file of ``search/`` is a function of the records and the study; a search that was killed can be
resumed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import read_whole_json, write_json
from equipoise.platform.errors import DataError, ToleranceError
from equipoise.platform.fingerprints import content_hash, require_same
from equipoise.platform.progress import ProgressBar
from equipoise.platform.search.configuration import config_from_study
from equipoise.platform.search.context import CachedCases, SearchContext, TrialInputs
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.searchers import Searcher, build_searcher
from equipoise.platform.search.selection import select_winner, write_best
from equipoise.platform.search.space import Config
from equipoise.platform.search.space_builder import build_space
from equipoise.platform.search.trial import (
    check_hidden_patients,
    run_trial,
    trials_folder,
    unfinished_configs,
)
from equipoise.platform.search.trial_records import Trial, read_trials, write_table
from equipoise.platform.study.schema import fixed_settings

if TYPE_CHECKING:
    from equipoise.platform.study.schema import Study
    from equipoise.platform.training.inputs import StudyInputs

log = logging.getLogger("equipoise")


def prepare(study: Study, data: StudyInputs) -> SearchContext:
    """Space, hold-out, inner folds and cases of a study whose features are there.

    Raises
    ------
    DataError
        If too few patients are left to hold out or to search on, or a trial could see a patient that it must not see.
    """
    from equipoise.platform.search.federated_trial import federation_clients, federation_fingerprint
    from equipoise.platform.search.patients import inner_folds, restrict_to, split_holdout

    params = study.search or SearchParams()
    seed = study.seed if params.seed is None else params.seed
    usable = data.cohorts
    usable.require_learnable()
    searched, held_out = split_holdout(
        usable, study.tasks, params.holdout, study.splits.keeps_sites_whole, seed
    )
    cohorts = restrict_to(usable, searched)
    folds = tuple(inner_folds(cohorts, study.tasks, study.split_scheme, params.folds, seed, params.seeds))
    cases = CachedCases(dataclasses.replace(data, cohorts=cohorts).cases("develop"))
    clients = (
        federation_clients(study, cohorts.patients, usable.patients) if study.federation is not None else ()
    )
    inputs = TrialInputs(study.resolved(), cases, folds, params.metric, clients)
    external = usable.patients[usable.patients["role"] == "external"]["patient"]
    check_hidden_patients(
        inputs, dict.fromkeys(held_out, "hold-out") | dict.fromkeys(external, "external cohort")
    )
    space = build_space(study, params)
    content_keys = {patient: data.content_keys[patient] for patient in searched}
    fingerprint = _fingerprint(study, params, seed, content_keys, data.features) | {
        "federation": federation_fingerprint(study.federation, clients)
    }
    return SearchContext(study, params, space, inputs, seed, searched, held_out, cohorts, fingerprint)


def run_search(study: Study, data: StudyInputs, run: Path) -> dict[str, Any]:
    """Run the remaining trials of a study's search and select the winner; ``search/`` of the run folder is written.

    Raises
    ------
    StudyError
        If the folder holds records of another search.
    ToleranceError
        If more trials failed than ``search.max_fail`` allows; the others are kept and the winner is one of them.
    """
    from equipoise.platform.search.trackers import TrackedSearch, open_trackers

    search_context = prepare(study, data)
    params, folder = search_context.params, run / "search"
    check_same_search(folder, search_context.fingerprint)
    finished = read_finished(folder)
    searcher, count = restore_searcher(search_context, finished)
    left = unfinished_indices(finished, count)
    log.info(
        "search trials=%d finished=%d patients=%d held_out=%d folds=%d metric=%s",
        count, len(finished), len(search_context.searched), len(search_context.held_out),
        len(search_context.inputs.folds), params.metric,
    )  # fmt: skip
    tracked = TrackedSearch.from_study(study, search_context.space, params.metric, run)
    with open_trackers(params.track, tracked) as track:
        for trial in finished:
            track(trial)  # trackers write every trial only once
        if left:
            with ProgressBar("search", count, unit="trials", done=len(finished)) as bar:
                on_end = partial(_report, bar=bar, track=track)
                _run_on_ray(left, searcher, search_context, folder, study, on_end)
    return finish_search(search_context, folder, count)


def _run_on_ray(
    left: Sequence[int],
    searcher: Searcher,
    search_context: SearchContext,
    folder: Path,
    study: Study,
    on_end: Callable[[Trial], None],
) -> None:
    """Run the trials that have no record, on Ray."""
    from equipoise.platform.cluster.session import ray_session
    from equipoise.platform.search.population import initial_settings
    from equipoise.platform.search.tune_runner import run_population, run_trials

    # Clients train one after the other in the process of the trial, without workers.
    workers = {} if study.federation is None else {"workers": 1}
    options: dict[str, Any] = {"training": study.training.model_copy(update=workers), "on_end": on_end}
    with ray_session(study.resources):
        if search_context.params.population:
            first = initial_settings(
                search_context.space, {index: searcher.ask(index) for index in left}, study
            )
            run_population(
                first, search_context.space, search_context.inputs, search_context.params, folder, **options
            )
        else:
            started = started_configs(search_context, folder)
            run_trials(
                left,
                searcher,
                search_context.inputs,
                search_context.params,
                folder,
                started=started,
                **options,
            )


def run_inline(search_context: SearchContext, folder: Path) -> list[Trial]:
    """The same trials one after the other in this process, without Ray and without a scheduler."""
    check_same_search(folder, search_context.fingerprint)
    finished = read_finished(folder)
    searcher, count = restore_searcher(search_context, finished)
    started = started_configs(search_context, folder)
    for index in unfinished_indices(finished, count):
        config = started.get(index)
        trial = run_trial(
            index, searcher.ask(index) if config is None else config, search_context.inputs, folder
        )
        searcher.tell(trial)
    return read_trials(trials_folder(folder))


def read_finished(folder: Path) -> list[Trial]:
    """Finished trials; records of those whose process died are removed: they go on from the state that they left."""
    for path in trials_folder(folder).glob("[0-9]*.json"):
        if read_whole_json(path) is None:
            log.warning("search: %s is damaged; its trial is run again", path.name)
            path.unlink()
    finished = []
    for trial in read_trials(trials_folder(folder)):
        if trial.died:
            log.info("search trial=%s is tried again: %s", trial.name, trial.reason)
            (trials_folder(folder) / f"{trial.name}.json").unlink()
        else:
            finished.append(trial)
    return finished


def restore_searcher(search_context: SearchContext, finished: Sequence[Trial]) -> tuple[Searcher, int]:
    """The searcher, after it was told all finished trials, and the total number of trials."""
    searcher, count = build_searcher(
        search_context.space,
        search_context.params,
        search_context.study.tasks,
        search_context.seed,
        told=len(finished),
    )
    for trial in finished:
        searcher.tell(trial)
    return searcher, count


def unfinished_indices(finished: Sequence[Trial], count: int) -> list[int]:
    """Numbers of trials without a record."""
    done = {trial.index for trial in finished}
    return [index for index in range(count) if index not in done]


def started_configs(search_context: SearchContext, folder: Path) -> dict[int, Config]:
    """Configurations of trials that have started and not ended, and of the first one: the study as written."""
    return unfinished_configs(folder) | {0: config_from_study(search_context.study, search_context.space)}


def finish_search(search_context: SearchContext, folder: Path, count: int) -> dict[str, Any]:
    """Write table, winner and best study of a search; returns metadata for the result line."""
    from equipoise.platform.search.analysis import write_rankings

    params = search_context.params
    trials = [trial for trial in read_trials(trials_folder(folder)) if trial.index < count]
    write_table(trials, folder / "trials.parquet")
    write_rankings(folder, synthetic=search_context.study.synthetic)
    failed = [trial for trial in trials if trial.status == "failed"]
    metadata: dict[str, Any] = {
        "trials": len(trials),
        "failed": len(failed),
        "pruned": sum(trial.status == "pruned" for trial in trials),
    }
    if any(trial.ok for trial in trials):
        winner = select_winner(trials, params)
        write_best(search_context.study, winner, trials, params, folder)
        metadata |= {"best": winner.name, params.metric: round(winner.objective, 4)}
    if len(failed) > params.max_fail * len(trials):
        raise ToleranceError(
            f"{len(failed)} of {len(trials)} trials failed, more than search.max_fail allows "
            f"({len(failed) / len(trials):.1%} > {params.max_fail:.1%})\n"
            + "\n".join(f"  {trial.name}: {trial.reason}" for trial in failed[:20]),
            where=str(trials_folder(folder)),
            fix="fix the causes named above, or raise search.max_fail; all good trials are kept. A trial whose process "
            "died or whose record is deleted is run again by the same command",
        )
    return metadata


def check_same_search(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Record the fingerprint of the search in this folder; refuse a folder with records of another search.

    Raises
    ------
    StudyError
        Naming what differs.
    """
    path = folder / "made_by.json"
    earlier = read_whole_json(path)
    if earlier is None and path.exists():
        raise DataError(
            "the file that says what the trials in this folder belong to is damaged",
            where=str(path),
            fix="remove it if study and tables are those that the search began with, or remove search/ to start again",
        )
    if earlier is None:
        write_json(path, fingerprint)
        return
    earlier["study"] = fixed_settings(earlier["study"])  # as this version would have written them
    require_same(
        {key: earlier.get(key) for key in fingerprint},  # earlier versions recorded more
        fingerprint,
        "the trials in this folder belong to another search",
        where=folder,
        fix="undo the change, choose another folder with -o, or delete search/ to start again",
    )


def _report(trial: Trial, bar: ProgressBar, track: Callable[[Trial], None]) -> None:
    """Count a trial that has ended and pass it to the trackers; one that failed gets a line of its own."""
    if trial.status == "failed":
        log.warning("search trial=%s failed: %s", trial.name, trial.reason)
    value = f" {trial.metric}={trial.objective:.4f}" if trial.folds else ""
    bar.update(text=f"trial={trial.name} status={trial.status}{value}")
    track(trial)


def _fingerprint(
    study: Study, params: SearchParams, seed: int, content_keys: Mapping[str, str], features: str
) -> dict[str, Any]:
    """Everything that the results of a trial depend on, besides its configuration; plain data."""
    rules = params.model_dump(
        mode="json",
        include={"searcher", "scheduler", "metric", "space", "folds", "seeds", "holdout", "levels"},
    )
    if params.searcher != "grid":
        rules.pop("levels")
    if params.searcher in ("random", "grid") and params.scheduler == "none":
        rules.pop("metric")  # the same trials, whatever they are ranked by
    return {
        "search": rules,
        "seed": seed,
        "study": fixed_settings(study.resolved()),
        "patients": content_hash(f"{p}: {content_keys[p]}" for p in sorted(content_keys)),
        "features": features,
    }

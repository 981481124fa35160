"""The step ``explain``: chosen patients → maps with their checks, top and bottom tiles, genes, modalities.

Everything is written below ``explain/`` of the run folder. A map that is there and was made from the same models,
features and settings is not made again; maps of slides and methods that are no longer asked for are removed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from equipoise.datasets.atomic_io import atomic_path, read_whole_json, write_json
from equipoise.datasets.names import file_stem
from equipoise.platform.errors import EquipoiseError, StudyError
from equipoise.platform.explain.attribution import CaseScores, Method, explain_case
from equipoise.platform.explain.checks import (
    FEWEST_TILES,
    agreement_check,
    completeness_check,
    deletion_check,
    deletion_curves,
    randomisation_check,
    too_few_tiles,
)
from equipoise.platform.explain.crops import crop_path, write_crops
from equipoise.platform.explain.explain_inputs import ExplainInputs, write_csv
from equipoise.platform.explain.explain_tables import explain_tables
from equipoise.platform.explain.explained import TrainedModel
from equipoise.platform.explain.params import MethodChoice
from equipoise.platform.explain.pictures import SlideFile, draw_pictures
from equipoise.platform.explain.render import VIEWER
from equipoise.platform.explain.selection import Chosen, choose, choose_named, held_out
from equipoise.platform.explain.slide_picture import ends
from equipoise.platform.explain.tile_scores import (
    MapCheck,
    TileScores,
    merge_checks,
    read_tile_scores,
    scores_path,
    write_tile_scores,
)
from equipoise.platform.fingerprints import content_hash, differences, fingerprint
from equipoise.platform.registry import nearest

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case

log = logging.getLogger("equipoise")

#: Layout of what is written; a change makes maps of earlier versions again.
LAYOUT = 1
#: What every map of a slide was made from.
MADE_FROM = "made_from.json"
SLIDES, TILES, CHECKS = "slides.csv", "tiles.parquet", "checks.csv"
SETTINGS = "settings.json"


def explain(given: ExplainInputs, folder: Path) -> dict[str, Any]:
    """Explain the chosen patients; details of the step.

    Parameters
    ----------
    given
        What is explained.
    folder
        ``explain/`` of the run.

    Raises
    ------
    StudyError
        If a method does not work with the model, or a task is unknown.
    DataError
        If a slide that was named is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    skipped: list[dict[str, str]] = []
    if given.whole_slides:
        skipped.append({"what": "maps of slides", "reason": given.whole_slides})
        chosen: list[Chosen] = []
    else:
        chosen = _chosen(given)
    _remove_others(
        folder, [slide for one in chosen for slide in given.models.case(one.patient, one.role).slides]
    )
    maps: list[TileScores] = []
    made = 0
    for number, one in enumerate(chosen, start=1):
        found, new = _explain_patient(given, one, folder)
        maps += found
        made += new
        log.info("explain patient=%s %d/%d maps=%d new=%d", one.patient, number, len(chosen), len(found), new)
    write_csv(_slides_table(given, chosen), folder / SLIDES)
    write_csv(_checks_table(maps), folder / CHECKS)
    if given.params.pictures:
        skipped += _draw(given, folder)
    tiles, crops = _tiles_table(given, maps, folder)
    skipped += [{"what": f"tile pictures of {slide}", "reason": reason} for slide, reason in crops.items()]
    with atomic_path(folder / TILES) as temporary:
        tiles.to_parquet(temporary, index=False)
    counts = explain_tables(given, folder, skipped)
    write_json(
        folder / SETTINGS,
        {"explain": given.params.model_dump(mode="json"), "tasks": list(given.tasks), "skipped": skipped},
    )
    for item in skipped:
        log.warning("explain: no %s: %s", item["what"], item["reason"])
    failed = sum(bool(one.failed) for one in maps)
    if failed:
        log.warning("explain: %d of %d maps fail a check; pictures and report say so", failed, len(maps))
    return {"patients": len(chosen), "maps": len(maps), "made": made, "maps_failing": failed, **counts}


def _chosen(given: ExplainInputs) -> list[Chosen]:
    slides = given.inputs.cohorts.slides
    wanted = given.params.slides
    if isinstance(wanted, int):
        return choose(given.predictions, given.main, wanted, set(slides["patient"].astype(str)))
    return choose_named(given.predictions, wanted, slides)


def _remove_others(folder: Path, slides: Iterable[str]) -> None:
    """Remove folders of slides that this step made earlier and that are not chosen now."""
    kept = {file_stem(slide) for slide in slides}
    for made in folder.glob(f"*/{MADE_FROM}"):
        if made.parent.name not in kept:
            log.info("explain: %s is no longer chosen, its maps are removed", made.parent.name)
            shutil.rmtree(made.parent)


def _explain_patient(given: ExplainInputs, one: Chosen, folder: Path) -> tuple[list[TileScores], int]:
    """The maps of all slides of a patient, and how many had to be made."""
    case = given.models.case(one.patient, one.role)
    names = given.models.unseen(one.patient, one.role)
    maps: list[TileScores] = []
    new = 0
    wanted: dict[str, set[str]] = {slide: set() for slide in case.slides}
    for choice in given.params.methods:
        method = Method.named(choice.name, choice.params)
        for task in given.tasks:
            for class_name in given.classes(one.patient, task):
                made_from = _made_from(given, one, names, task, class_name, choice)
                paths = [scores_path(folder, slide, task, class_name, method.name) for slide in case.slides]
                kept = [_read_if_current(path, made_from) for path in paths]
                if any(part is None for part in kept):
                    fresh = _make(given, one, case, names, task, class_name, method)
                    for path, scores in zip(paths, fresh, strict=True):
                        _record(path, write_tile_scores(scores, path), made_from)
                    kept = list(fresh)
                    new += len(fresh)
                maps += [part for part in kept if part is not None]
                for slide, path in zip(case.slides, paths, strict=True):
                    wanted[slide].add(path.name)
    for slide, files in wanted.items():
        for path in (folder / file_stem(slide)).glob("*.parquet"):
            if path.name not in files:  # with its pictures
                for other in path.parent.glob(f"{path.stem}.*"):
                    other.unlink()
    return maps, new


def _make(
    given: ExplainInputs,
    one: Chosen,
    case: Case,
    names: Sequence[str],
    task: str,
    class_name: str,
    method: Method,
) -> list[TileScores]:
    """The maps of all slides of a patient, for one task, class and method."""
    folds = given.models.folds
    others = [name for name in folds if name not in names] if given.params.checks else []
    if given.behind is None:
        asked: list[tuple[Case, list[TrainedModel], list[TrainedModel]]] = [
            (case, [folds[name] for name in names], [folds[name] for name in others])
        ]
    else:  # one slide at a time, through the slide encoder
        asked = []
        for at in range(len(case.slides)):
            own = given.behind.case(case, at)
            width = own.bag.shape[1]
            parts = (
                [given.behind.model(folds[name], case, at, width) for name in group]
                for group in (names, others)
            )
            asked.append((own, *parts))  # type: ignore[arg-type]
    maps = []
    learned = sum(one.patient in folds[name].config["patients"]["train"] for name in others)
    for own, models, more in asked:
        (scores,) = explain_case(models, own, task, class_name, method)
        checks = map_checks(scores, more, learned, given.seed) if given.params.checks else []
        maps += [merge_checks(part, checks) for part in scores.by_slide(synthetic=given.synthetic)]
    return maps


def map_checks(scores: CaseScores, others: Sequence[TrainedModel], learned: int, seed: int) -> list[MapCheck]:
    """All checks of a map; ``others`` are models that do not explain the patient, most of which learned from it."""
    count = len(scores.mean)
    if count < FEWEST_TILES:
        return [too_few_tiles(name, count) for name in ("deletion", "randomisation")]
    checks = [deletion_check(deletion_curves(scores, seed=seed)), randomisation_check(scores, seed=seed)]
    each = scores.each
    if others:
        task = scores.output.task.head.name
        (beside,) = explain_case(others, scores.case, task, scores.output.class_name, scores.method)
        each = np.concatenate([each, beside.each])
    if len(each) > 1:
        checks.append(agreement_check(each, learned))
    completeness = completeness_check(scores)
    return [*checks, *([] if completeness is None else [completeness])]


def _draw(given: ExplainInputs, folder: Path) -> list[dict[str, str]]:
    """Pictures of all maps; what is missing and why."""
    slides = {
        str(row["slide"]): SlideFile(str(row["path"]), float(row["mpp"]), given.mpp_override)
        for row in given.inputs.cohorts.slides.to_dict("records")
    }
    return [
        {"what": f"viewer of {slide}", "reason": why} for slide, why in draw_pictures(folder, slides).items()
    ]


def _made_from(
    given: ExplainInputs, one: Chosen, names: Sequence[str], task: str, class_name: str, choice: MethodChoice
) -> dict[str, Any]:
    """Everything that a map and its checks are a function of."""
    return fingerprint(
        {
            "layout": LAYOUT,
            "folds": {name: given.folds[name] for name in (given.folds if given.params.checks else names)},
            "explains": list(names),
            "content": content_hash([given.inputs.content_keys[one.patient]]),
            "features": given.inputs.features,
            "method": choice.model_dump(mode="json"),
            "task": task,
            "class": class_name,
            "checks": given.params.checks,
            "seed": given.seed,
        }
    )


def _read_if_current(path: Path, made_from: Mapping[str, Any]) -> TileScores | None:
    known = read_whole_json(path.parent / MADE_FROM) or {}
    if path.name not in known or differences(known[path.name], made_from):
        return None
    try:
        return read_tile_scores(path)
    except EquipoiseError as damaged:
        log.warning("explain: %s is made again: %s", path.name, damaged)
        return None


def _record(path: Path, written: Path, made_from: Mapping[str, Any]) -> None:
    known = dict(read_whole_json(path.parent / MADE_FROM) or {})
    known[written.name] = dict(made_from)
    write_json(path.parent / MADE_FROM, known)


def _slides_table(given: ExplainInputs, chosen: Sequence[Chosen]) -> pd.DataFrame:
    """One row per slide and task, with what was predicted."""
    columns = [
        "slide",
        "patient",
        "cohort",
        "role",
        "reason",
        "task",
        "class",
        "prediction",
        "target",
        "time",
        "event",
    ]
    rows = []
    for task in given.tasks:
        known = held_out(given.predictions, task)
        for one in chosen:
            for row in known[known["patient"] == one.patient].to_dict("records"):
                for slide in given.models.case(one.patient, one.role).slides:
                    rows.append(
                        {"slide": slide, "patient": one.patient, "cohort": one.cohort, "role": one.role}
                        | {
                            "reason": one.reason,
                            "task": task,
                            "class": row["class"],
                            "prediction": row["score"],
                        }
                        | {name: row[name] for name in ("target", "time", "event")}
                    )
    return pd.DataFrame(rows, columns=columns)


_OF_A_MAP = ("slide", "patient", "cohort", "task", "class", "method")


def _map_values(scores: TileScores) -> tuple[str, ...]:
    """Values of the columns ``_OF_A_MAP``."""
    return scores.slide, scores.patient, scores.cohort, scores.task, scores.class_name, scores.method


def _checks_table(maps: Iterable[TileScores]) -> pd.DataFrame:
    columns = [*_OF_A_MAP, "check", "value", "low", "high", "passed", "reason"]
    rows = []
    for s in maps:
        rows += [(*_map_values(s), c.name, c.value, c.low, c.high, c.passed, c.reason) for c in s.checks]
    return pd.DataFrame(rows, columns=columns)


def _tiles_table(
    given: ExplainInputs, maps: Sequence[TileScores], folder: Path
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The tiles at either end of every map of the first method, and slide → why it has no pictures."""
    columns = [*_OF_A_MAP, "end", "rank", "x", "y", "side", "score", "crop"]
    slides = given.inputs.cohorts.slides.set_index("slide")
    first = given.params.methods[0].name
    rows: list[tuple[Any, ...]] = []
    problems: dict[str, str] = {}
    for scores in maps:
        if scores.method != first:
            continue
        top, bottom = ends(scores, given.params.top_k)
        page = folder / file_stem(scores.slide) / VIEWER
        if given.params.crops and scores.slide not in problems:
            row = slides.loc[scores.slide]
            reason = write_crops(
                scores,
                [*top, *bottom],
                str(row["path"]),
                page,
                mpp=float(row["mpp"]),
                override=given.mpp_override,
            )
            if reason:
                problems[scores.slide] = reason
        for end, at_K in (("top", top), ("bottom", bottom)):
            for rank, at in enumerate(at_K, start=1):
                picture = crop_path(page, scores, at)
                crop = picture.relative_to(folder).as_posix() if picture.is_file() else ""
                tile = (int(scores.x[at]), int(scores.y[at]), scores.side, float(scores.score[at]), crop)
                rows.append((*_map_values(scores), end, rank, *tile))
    return pd.DataFrame(rows, columns=columns), problems


def explained_tasks(names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The tasks that are explained: those named, else all.

    Raises
    ------
    StudyError
        If a name is no task.
    """
    for name in names or ():
        if name not in known:
            raise StudyError(
                f"explain.tasks: {name!r} is no task; tasks: {', '.join(known)}{nearest(name, known)}"
            )
    return tuple(names or known)

"""Leakage audit of the folds, and remarks on folds that are too small to be informative."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from equipoise.datasets.cohorts.seen import Seen
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.params import SplitParams
from equipoise.datasets.tables.tasks import RegressionTask, SurvivalTask, Task

if TYPE_CHECKING:
    import pandas as pd

#: A test part with fewer positives or events than this is not informative.
MIN_POSITIVES = 5
#: How the checks of pre-trained parts end.
SEEN_CHECK = " has seen"
PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))


def leakage_audit(
    folds: Sequence[Fold],
    patients: pd.DataFrame,
    slides: pd.DataFrame | None = None,
    *,
    preserve_sites: bool = False,
    seen: Mapping[str, Seen] | None = None,
) -> pd.DataFrame:
    """Count patients, sites and files that are in two parts of a fold; every count must be 0.

    Parameters
    ----------
    folds
        The folds that models were trained on.
    patients
        Columns patient, site, role (both roles).
    slides
        Columns patient and fingerprint (equal fingerprints are equal files, empty ones are ignored); before
        slides were looked at, patient and path.
    preserve_sites
        Whether sites must not be shared between test part and the rest.
    seen
        Pre-trained part of the model → whom it has seen.

    Returns
    -------
    pandas.DataFrame
        Columns check, fold (``repeat-index``), overlap, ok. Checks: ``patient`` (any two parts), ``site``
        (test against the rest; only if preserved), ``slide file`` (any two parts), ``external patient``
        (external patients in a fold), ``external slide file`` (files of external patients in a fold);
        ``patient that <part> has seen`` and ``slide file that <part> has seen`` (among test and external patients).
    """
    import pandas as pd

    site = dict(zip(patients["patient"], patients["site"], strict=True))
    external = set(patients.loc[patients["role"] == "external", "patient"])
    files = _files_by_patient(slides)
    external_files = _files(external, files)
    rows = []
    for fold in folds:
        parts = {part: set(getattr(fold, part)) for part in ("train", "val", "test")}
        everybody = set().union(*parts.values())
        owned = {part: _files(ids, files) for part, ids in parts.items()}
        checks = {"patient": sum(len(parts[a] & parts[b]) for a, b in PAIRS)}
        if preserve_sites:
            learned = {site.get(p) for p in parts["train"] | parts["val"]}
            checks["site"] = len(learned & {site.get(p) for p in parts["test"]})
        if slides is not None:
            checks["slide file"] = sum(len(owned[a] & owned[b]) for a, b in PAIRS)
        checks["external patient"] = len(everybody & external)
        if slides is not None:
            checks["external slide file"] = len(set().union(*owned.values()) & external_files)
        for part, known in (seen or {}).items():
            checks[f"patient that {part}{SEEN_CHECK}"] = len(known.patients_among(parts["test"] | external))
            if slides is not None:
                checks[f"slide file that {part}{SEEN_CHECK}"] = len(
                    known.slides_among(owned["test"] | external_files)
                )
        rows += [(check, fold.name, overlap, overlap == 0) for check, overlap in checks.items()]
    return pd.DataFrame(rows, columns=["check", "fold", "overlap", "ok"])


def _files_by_patient(slides: pd.DataFrame | None) -> dict[str, set[str]]:
    files: dict[str, set[str]] = {}
    if slides is not None:
        known_by = "fingerprint" if "fingerprint" in slides else "path"
        for patient, identity in zip(slides["patient"], slides[known_by], strict=True):
            if isinstance(identity, str) and identity:
                files.setdefault(patient, set()).add(identity)
    return files


def _files(patients: Iterable[str], files: dict[str, set[str]]) -> set[str]:
    return set().union(*(files.get(patient, set()) for patient in patients))


def shared_files(folds: Sequence[Fold], patients: pd.DataFrame, slides: pd.DataFrame) -> list[str]:
    """One sentence per file that :func:`leakage_audit` finds in two parts: which slides of whom it is.

    Parameters
    ----------
    folds
        The folds that models were trained on.
    patients
        Columns patient, role (both roles).
    slides
        Columns slide, patient and fingerprint (or path), as for :func:`leakage_audit`.

    Returns
    -------
    list of str
        In the order of ``slides``; empty where no file of two patients stands in two parts of a fold, or in a
        fold and an external cohort.
    """
    sides = _sides(folds, patients)
    known_by = "fingerprint" if "fingerprint" in slides else "path"
    owners: dict[str, list[tuple[str, str]]] = {}
    for slide, patient, identity in zip(slides["slide"], slides["patient"], slides[known_by], strict=True):
        if isinstance(identity, str) and identity:
            owners.setdefault(identity, []).append((str(slide), str(patient)))
    sentences = []
    for listed in owners.values():
        sharing = {patient for _, patient in listed}
        if len(sharing) > 1 and any(len({side[p] for p in sharing if p in side}) > 1 for side in sides):
            sentences.append(_same_file(listed))
    return sentences


def _sides(folds: Sequence[Fold], patients: pd.DataFrame) -> list[dict[str, str]]:
    """Per fold, the side each patient stands on; external patients are one more side."""
    external = dict.fromkeys(patients.loc[patients["role"] == "external", "patient"], "external")
    return [
        external | {patient: part for part in ("train", "val", "test") for patient in getattr(fold, part)}
        for fold in folds
    ]


def _same_file(listed: Sequence[tuple[str, str]], n: int = 6) -> str:
    """``slides A (patient X) and B (patient Y) are the same file``; of many slides, the first."""
    named = [f"{slide} (patient {patient})" for slide, patient in listed]
    if len(named) > n:
        named = [*named[:n], f"{len(named) - n} more"]
    return f"slides {', '.join(named[:-1])} and {named[-1]} are the same file"


def shared_sites(patients: pd.DataFrame) -> list[str]:
    """Remarks on hospitals that stand in a development and in an external cohort; nothing fails for them.

    Parameters
    ----------
    patients
        Columns patient, cohort, role, site. Only the schemes ``tss`` and ``institution`` name the same site
        in two cohorts (see :mod:`equipoise.datasets.cohorts.sites`).

    Returns
    -------
    list of str
        One per external cohort that shares a site.
    """
    named = patients[patients["site"] != patients["cohort"]]  # scheme ``cohort`` names no hospital
    develop = named[named["role"] == "develop"]
    remarks = []
    for cohort, external in named[named["role"] == "external"].groupby("cohort", sort=False):
        shared = external[external["site"].isin(set(develop["site"]))]
        if shared.empty:
            continue
        sites = sorted(set(shared["site"]))
        cohorts = dict.fromkeys(develop.loc[develop["site"].isin(sites), "cohort"])
        shown = ", ".join(map(str, sites[:5])) + (f" and {len(sites) - 5} more" if len(sites) > 5 else "")
        noun, verb = ("hospital", "is") if len(sites) == 1 else ("hospitals", "are")
        whole = int((patients["cohort"] == cohort).sum())
        remarks.append(
            f"{noun} {shown} {verb} in both {', '.join(map(str, cohorts))} and {cohort} "
            f"({len(shared)} of {whole} patients): the external cohort is not wholly new"
        )
    return remarks


def split_warnings(
    folds: Sequence[Fold], patients: pd.DataFrame, tasks: Sequence[Task], params: SplitParams | None = None
) -> list[str]:
    """Remarks on folds that are possible but weak.

    Test parts with fewer than five positives, patients of a class or events; training parts without a class;
    where ``params`` say that sites are preserved, a site too large for balanced folds, repeats that found
    the same folds, and inner validation parts that share sites with the training part; and names of published
    folds that are nobody's.
    """
    table = patients.set_index("patient")
    remarks = [r for task in tasks for r in _scarce(task, folds, table)]
    if params is not None and params.keeps_sites_whole:
        remarks += _site_remarks(folds, table)
    return [*remarks, *_unknown_names(folds)]


def _unknown_names(folds: Sequence[Fold]) -> list[str]:
    """Names in the files of published folds that are nobody's."""
    unknown = {name: fold.title for fold in folds for name in fold.unknown}
    if not unknown:
        return []
    examples = ", ".join([*unknown][:3])
    return [
        f"{len(unknown)} names of the published folds are no patients of the study, or were left out of it "
        f"({examples}): test parts are smaller than the published ones; manifest/splits.json lists them"
    ]


def _site_remarks(folds: Sequence[Fold], table: pd.DataFrame) -> list[str]:
    """What keeps site-preserved folds from being what they are meant to be."""
    remarks = []
    k = len({fold.index for fold in folds})
    sites = table["site"]
    counts = sites[table["role"] == "develop"].value_counts()
    if (share := counts.iloc[0] / counts.sum()) > 1 / k:
        remarks.append(
            f"site {counts.index[0]!r} holds {share:.0%} of the development patients, more than 1/{k}: "
            "site-preserved folds cannot be balanced"
        )
    if same := _equal_repeats(folds):
        remarks.append(
            f"repeat {', '.join(map(str, same))} found the same test parts as an earlier one: the best "
            "assignment of sites does not depend on the seed"
        )
    if sharing := [f.name for f in folds if set(sites[list(f.train)]) & set(sites[list(f.val)])]:
        remarks.append(
            f"fold {', '.join(sharing)}: inner validation is drawn by patient, since whole sites do not give "
            "a part of the wanted size with every class"
        )
    return remarks


def _equal_repeats(folds: Sequence[Fold]) -> list[int]:
    """Repeats whose test parts are those of an earlier repeat."""
    seen: set[frozenset[tuple[str, ...]]] = set()
    same = []
    for repeat in sorted({fold.repeat for fold in folds}):
        parts = frozenset(fold.test for fold in folds if fold.repeat == repeat)
        if parts in seen:
            same.append(repeat)
        seen.add(parts)
    return same


def _scarce(task: Task, folds: Sequence[Fold], table: pd.DataFrame) -> list[str]:
    """Classes or events that are scarce in test parts or absent from training parts."""
    if isinstance(task, RegressionTask):
        return []
    codes = table[task.frame_columns[-1]]
    if isinstance(task, SurvivalTask):
        groups = {1: "events"}
    elif task.type == "binary":
        groups = {1: "positives", 0: "negatives"}
    else:
        groups = {code: f"patients of class {name}" for code, name in enumerate(task.class_names)}
    remarks = []
    for code, what in groups.items():
        tested = {fold.name: int((codes[list(fold.test)] == code).sum()) for fold in folds}
        if scarce := {name: n for name, n in tested.items() if n < MIN_POSITIVES}:
            listed = ", ".join(f"{name} ({n})" for name, n in scarce.items())
            remarks.append(
                f"task {task.name!r}: fewer than {MIN_POSITIVES} {what} in the test part of fold {listed}"
            )
        if absent := [fold.name for fold in folds if not (codes[list(fold.train)] == code).any()]:
            remarks.append(f"task {task.name!r}: no {what} in the training part of fold {', '.join(absent)}")
    return remarks

"""Folds that somebody else has drawn: files of PORPOISE, MCAT, SurvPath, CLAM and STAMP, and plain tables.

A study that repeats a published comparison tests on the published test parts and on nothing else. The files name
patients, or slides of patients; where a file has no inner validation part beside its test part, one is drawn from
training as in every other scheme.

======================================  ==========================================================================
file                                    read as
======================================  ==========================================================================
``splits_{k}.csv``: columns of names    a fold per file; ``train`` and ``test``, ``val`` is inner validation
``train``, ``val`` and ``test``
the same without ``test``               ``val`` is the test part, as PORPOISE, MCAT and SurvPath report it
``splits_{k}_bool.csv``                 a fold per file; a row per slide or patient with True under its part (CLAM)
``splits.json``                         STAMP's ``train_patients`` and ``test_patients``, or Equipoise's own
a table ``patient, fold``               every patient is tested in that fold and trained on in the others
a table ``patient, fold, role``         as the rows say; without ``fold``, one fold
======================================  ==========================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.datasets.cohorts.cohort_tables import slide_stem
from equipoise.datasets.cohorts.fold_parts import DevelopPatients, FoldParts
from equipoise.datasets.cohorts.sites import patient_code
from equipoise.datasets.errors import DataError
from equipoise.datasets.params import FileSplitParams, TableSource
from equipoise.datasets.suggestions import nearest
from equipoise.datasets.tables.reading import MISSING, detect_dialect, locate, read_table

if TYPE_CHECKING:
    import pandas as pd

#: Word in a file → part of a fold.
ROLES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
#: Names of columns in plain tables, in the order in which they are looked for.
PATIENT_NAMES = ("patient", "patient_id", "patient id", "case", "case_id", "pid", "id", "slide_id", "slide")
FOLD_NAMES = ("fold", "fold_id", "cv_fold", "cv", "split", "k")
ROLE_NAMES = ("role", "part", "subset", "partition", "phase")
#: Columns that hold a role or something else: what they hold decides.
MAYBE_ROLE_NAMES = ("set", "split", "fold")
TRUE, FALSE = frozenset({"true", "1", "1.0", "yes"}), frozenset({"false", "0", "0.0", "no", ""})


@dataclass(frozen=True)
class PublishedFold:
    """One fold as a file names it: patients, or slides of patients.

    Attributes
    ----------
    name
        Of the file, or of the fold in its table.
    train, val, test
        Names; ``val`` is empty where the file has a test part only.
    """

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def read_folds(params: FileSplitParams, base: Path) -> list[PublishedFold]:
    """All folds of the files, in the order of the files and of the numbers in their names.

    Raises
    ------
    DataError
        If a file does not exist, is none of the known forms, or a name stands in two parts of a fold.
    """
    folds = [fold for path in fold_files(params.files, base) for fold in _folds_of(path, params)]
    for name in {fold.name for fold in folds if [f.name for f in folds].count(fold.name) > 1}:
        raise DataError(f"two folds are called {name!r}", where="splits.files", fix="rename one of the files")
    for fold in folds:
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            if shared := sorted(set(getattr(fold, one)) & set(getattr(fold, other))):
                raise DataError(
                    f"{len(shared)} name(s) stand in both {one} and {other}: {', '.join(shared[:3])}",
                    where=f"splits.files, {fold.name}",
                    fix="such folds leak: take another version of the files, or remove one of the two",
                )
        if not fold.test or not fold.train:
            raise DataError(
                f"the {'test' if fold.train else 'training'} part is empty",
                where=f"splits.files, {fold.name}",
                fix="leave this fold out of splits.files",
            )
    return folds


def positions(fold: PublishedFold, patients: Sequence[str], slides: Mapping[str, str]) -> dict[str, Any]:
    """A fold's parts as positions of known patients.

    Parameters
    ----------
    fold
        Names of patients or slides.
    patients
        Keys of the patients that there are.
    slides
        Name of a slide → patient.

    Returns
    -------
    ``train``, ``val`` and ``test`` as sorted lists of positions, and ``unknown`` with the names that are nobody's.

    Raises
    ------
    DataError
        If two slides of a patient stand in two parts.
    """
    position = {patient: i for i, patient in enumerate(patients)}
    owner: dict[int, str] = {}
    found: dict[str, Any] = {"train": [], "val": [], "test": [], "unknown": []}
    for part in ("train", "val", "test"):
        for name in getattr(fold, part):
            patient = _patient_of(name, position, slides)
            if patient is None:
                found["unknown"].append(name)
                continue
            index = position[patient]
            if owner.setdefault(index, part) != part:
                raise DataError(
                    f"slides of patient {patient} stand in both {owner[index]} and {part}",
                    where=f"splits.files, {fold.name}",
                    fix="such folds leak: split patients, not slides",
                )
            found[part].append(index)
    return {key: sorted(set(value)) for key, value in found.items()}


def unlisted_patients(
    params: FileSplitParams, base: Path, patients: pd.DataFrame, slides: pd.DataFrame
) -> dict[str, str]:
    """Development patients that no fold names → the reason to leave them out.

    Parameters
    ----------
    patients
        Columns patient and role.
    slides
        Columns slide and patient.

    Raises
    ------
    DataError
        If the files name no patient of the study.
    """
    develop = patients.loc[patients["role"] == "develop", "patient"].tolist()
    owners = dict(zip(slides["slide"], slides["patient"], strict=True))
    listed: set[int] = set()
    unknown: list[str] = []
    for fold in read_folds(params, base):
        parts = positions(fold, develop, owners)
        listed.update(parts["train"], parts["val"], parts["test"])
        unknown += parts["unknown"]
    if not listed:
        raise DataError(
            f"no name in these files is a patient of the study: {', '.join(map(repr, unknown[:3]))} there, "
            f"{', '.join(map(repr, develop[:3]))} here{nearest(unknown[0], develop) if unknown else ''}",
            where="splits.files",
            fix="make the names equal, letter by letter, or take the files of this cohort",
        )
    return {p: "in no fold of splits.files" for i, p in enumerate(develop) if i not in listed}


def from_files(
    develop: DevelopPatients, params: FileSplitParams, rng: np.random.Generator
) -> list[FoldParts]:
    """The folds of the study's files, as positions of its development patients.

    A fold in which nobody of the study is tested, as happens in a subsample, is left out.
    """
    drawn = []
    for fold in read_folds(params, develop.base):
        found = positions(fold, develop.patients.tolist(), develop.slides)
        if found["test"] and found["train"]:
            part = {name: np.array(found[name], dtype=np.int64) for name in ("train", "val", "test")}
            val = part["val"] if len(part["val"]) else None
            drawn.append(FoldParts(part["test"], part["train"], val, fold.name, tuple(found["unknown"])))
    if not drawn:
        raise DataError(
            "no fold of the files has patients of the study in both training and test part",
            where="splits.files",
            fix="take the files of this cohort",
        )
    return drawn


def _patient_of(name: str, patients: Mapping[str, int], slides: Mapping[str, str]) -> str | None:
    """The patient that a file means: by key, by slide, or by the barcode of a sample or slide."""
    if name in patients:
        return name
    for candidate in (slides.get(name), slides.get(slide_stem(name)), patient_code(name)):
        if candidate in patients:
            return candidate
    return None


def fold_files(files: Sequence[str], base: Path) -> list[Path]:
    """Files behind paths, folders and patterns; numbers in their names are ordered as numbers.

    Raises
    ------
    DataError
        If a file does not exist, or nothing matches a pattern.
    """
    paths: list[Path] = []
    for text in files:
        full = base / Path(text).expanduser()
        if full.is_dir() or any(sign in text for sign in "*?["):
            pattern = full / "*" if full.is_dir() else full
            matched = [p for p in pattern.parent.glob(pattern.name) if p.is_file() and _may_hold_folds(p)]
            if not matched:
                raise DataError(
                    "no file there holds folds", where=str(full), fix="splits: {files: splits/splits_*.csv}"
                )
            paths += sorted(_without_twins(matched), key=lambda p: _natural(p.name))
        else:
            paths.append(locate(text, base))
    return paths


def _may_hold_folds(path: Path) -> bool:
    """CLAM writes a table of counts beside each fold."""
    return not _stem(path).endswith("_descriptor") and not path.name.startswith((".", "~$"))


def _without_twins(paths: list[Path]) -> list[Path]:
    """Of ``splits_0.csv`` and ``splits_0_bool.csv``, which say the same, the first."""
    stems = {_stem(path) for path in paths}
    return [p for p in paths if not (_stem(p).endswith("_bool") and _stem(p).removesuffix("_bool") in stems)]


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in re.split(r"(\d+)", name)]


def _folds_of(path: Path, params: FileSplitParams) -> list[PublishedFold]:
    if path.suffix.lower() == ".json":
        return _from_json(path)
    table = read_table(TableSource(path=str(path.resolve())), path.parent)
    parts = {ROLES[name.casefold()]: name for name in table.columns if name.casefold() in ROLES}
    if "train" in parts and len(parts) > 1 and params.fold is None and params.role is None:
        return [_fold_of_columns(table, parts, _stem(path))]
    return _from_assignments(table, path, params)


def _fold_of_columns(table: pd.DataFrame, parts: dict[str, str], name: str) -> PublishedFold:
    """One column per part: names, or whether the row's name is in it."""
    cells = {part: [text for text in table[column] if text not in MISSING] for part, column in parts.items()}
    logical = all(text.casefold() in TRUE | FALSE for texts in cells.values() for text in texts)
    if logical:
        rest = [column for column in table.columns if column not in parts.values()]
        if not rest:
            raise DataError(
                "the table says True and False, and no column names the row", where=f"splits.files, {name}"
            )
        names = table[rest[0]].tolist()
        cells = {
            part: [n for n, text in zip(names, table[column], strict=True) if text.casefold() in TRUE]
            for part, column in parts.items()
        }
    if "test" not in cells:
        cells["test"] = cells.pop("val")
    unique = {part: tuple(dict.fromkeys(names)) for part, names in cells.items()}
    return PublishedFold(name, unique["train"], unique.get("val", ()), unique["test"])


def _from_assignments(table: pd.DataFrame, path: Path, params: FileSplitParams) -> list[PublishedFold]:
    """A row per patient (and fold)."""
    where = f"splits.files, {path.name}"
    dialect = detect_dialect(table)
    key = _column(table, params.patient, PATIENT_NAMES, where) or (dialect and dialect.columns.patient)
    role = _column(table, params.role, ROLE_NAMES, where)
    role = role or _column(table, None, MAYBE_ROLE_NAMES, where, holds=set(ROLES))
    fold = _column(table, params.fold, [n for n in FOLD_NAMES if role is None or n != role.casefold()], where)
    if key is None or (fold is None and role is None):
        raise DataError(
            f"neither the columns train, val and test nor patient and fold are among {', '.join(table.columns[:8])}",
            where=where,
            fix="name them: splits: {scheme: file, files: …, patient: COLUMN, fold: COLUMN, role: COLUMN}",
        )
    table = table[table[key] != ""]
    folds = table[fold].tolist() if fold else [_stem(path)] * len(table)
    roles = [ROLES.get(text.casefold(), text) for text in table[role]] if role else ["test"] * len(table)
    if odd := sorted({text for text in roles if text not in ROLES.values()}):
        raise DataError(
            f"{', '.join(map(repr, odd[:5]))} in column {role!r} is no part of a fold",
            where=where,
            fix="write train, val or test",
        )
    result = []
    for name in sorted({text for text in folds if text not in MISSING}, key=_natural):
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for patient, own, part in zip(table[key], folds, roles, strict=True):
            if own == name:
                parts[part].append(patient)
            elif role is None and own not in MISSING:
                parts["train"].append(patient)
        if not parts["test"]:
            parts["test"], parts["val"] = parts["val"], []
        title = f"fold {name}" if fold else name
        result.append(
            PublishedFold(title, *(tuple(dict.fromkeys(parts[p])) for p in ("train", "val", "test")))
        )
    return result


def _column(
    table: pd.DataFrame, named: str | None, usual: Sequence[str], where: str, holds: set[str] | None = None
) -> str | None:
    """The column of that name, else the first usual one (that holds some of these words only)."""
    if named is not None:
        if named not in table.columns:
            raise DataError(
                f"no column {named!r}{nearest(named, table.columns)}",
                where=where,
                fix=f"columns: {', '.join(table.columns[:20])}",
            )
        return named
    spelled = {str(column).casefold(): str(column) for column in reversed(table.columns)}
    for name in usual:
        column = spelled.get(name)
        if column and (holds is None or {v.casefold() for v in table[column]} - {""} <= holds):
            return column
    return None


def _from_json(path: Path) -> list[PublishedFold]:
    """STAMP's ``splits.json``, or Equipoise's."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"not readable as JSON ({error})", where=str(path)) from error
    own = data.get("folds") if isinstance(data, dict) else None
    stamp = data.get("splits") if isinstance(data, dict) else None
    try:
        if isinstance(own, list):
            return [
                PublishedFold(
                    str(f.get("title") or f"{f['repeat']}-{f['index']}"),
                    *(tuple(map(str, f[p])) for p in ("train", "val", "test")),
                )
                for f in own
            ]
        if isinstance(stamp, list):
            return [
                PublishedFold(
                    f"split {k}",
                    tuple(map(str, s["train_patients"])),
                    (),
                    tuple(map(str, s["test_patients"])),
                )
                for k, s in enumerate(stamp)
            ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"a fold of the file lacks a part ({error})", where=str(path), fix="write it again"
        ) from error
    raise DataError(
        "neither STAMP's splits (train_patients, test_patients) nor Equipoise's folds",
        where=str(path),
        fix="convert it to a table with the columns patient, fold and role",
    )

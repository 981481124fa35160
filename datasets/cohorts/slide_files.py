"""Files of a slides table against what is in their folders: counted, with examples and the name that is meant."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from equipoise.datasets.cohorts.cohort_tables import slide_stem
from equipoise.datasets.cohorts.keys import visible

#: Examples of each kind.
EXAMPLES = 3
#: How a file may be called that a table calls differently.
_FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("with another ending, or with one", slide_stem),
    ("in another case", str.casefold),
    ("in another Unicode form or without invisible characters", visible),
)


def file_notes(cohort: str, paths: Sequence[str]) -> list[str]:
    """Remarks on files of the slides table that are not in their folders, and on what is there in their place.

    Every folder is listed once and no file is opened; addresses, and folders that do not exist, are left alone.

    Parameters
    ----------
    cohort
        Name for the remarks.
    paths
        Files as the table names them, with their folders.
    """
    folders: dict[str, _Folder] = {}
    absent: list[str] = []
    found: dict[str, list[tuple[str, str]]] = {}
    for path in paths:
        if "://" in path:
            continue
        where, name = os.path.split(path)
        folder = folders.get(where) or folders.setdefault(where, _Folder(where))
        if not folder.exists or name in folder.names:
            continue
        how, meant = folder.meant(name)
        if meant:
            found.setdefault(how, []).append((name, meant))
        else:
            absent.append(name)
    notes = [
        f"cohort {cohort}: {len(pairs)} of {len(paths)} files are in their folder only {how} "
        f"({_shown(f'{name!r} is there as {there!r}' for name, there in pairs)}): write the names of the files in the "
        "slides table"
        for how, pairs in found.items()
    ]
    if absent:
        shown = _shown(map(repr, absent))
        notes.append(
            f"cohort {cohort}: {len(absent)} of {len(paths)} files of the slides table are not there ({shown})"
        )
    return notes


class _Folder:
    """Names of a folder, and which of them a table may mean."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.names = frozenset(os.listdir(path or "."))
            self.exists = True
        except OSError:
            self.names, self.exists = frozenset(), False
        self._by_form: list[dict[str, str]] = []

    def meant(self, name: str) -> tuple[str, str]:
        """How the file that is meant is called differently, and its name; empty if there is none, or several."""
        if "\\" in name and os.path.exists(os.path.join(self.path, slashed := name.replace("\\", "/"))):
            return "with / in place of \\", slashed
        if not self._by_form:
            for _, form in _FORMS:
                by_form: dict[str, str] = {}
                for entry in self.names:
                    key = form(entry)
                    by_form[key] = "" if key in by_form else entry
                self._by_form.append(by_form)
        for (how, form), by_form in zip(_FORMS, self._by_form, strict=True):
            if entry := by_form.get(form(name), ""):
                return how, entry
        return "", ""


def _shown(items: Iterable[str]) -> str:
    items = list(items)
    return ", ".join(items[:EXAMPLES]) + (", …" if len(items) > EXAMPLES else "")

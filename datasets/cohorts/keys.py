"""Keys of patients that are nearly equal: counted, with examples and what to do, and never matched by themselves.

Keys must be equal letter by letter. Where they are equal but for zeros, case, invisible characters or separators, a
table has been through a program that changed them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from equipoise.datasets.cohorts.sites import patient_code

#: Examples of each kind.
EXAMPLES = 3


class Spelling(NamedTuple):
    """A way in which two keys are nearly equal.

    Attributes
    ----------
    differs
        Completes "… match only …".
    remedy
        What to do about it.
    form
        Key → text that is equal for keys of this kind.
    """

    differs: str
    remedy: str
    form: Callable[[str], str]


def visible(key: str) -> str:
    """A key in one Unicode form, without characters that cannot be seen and with plain spaces and dashes.

    >>> visible("P\\u200b1\\u00a0a\\u2011b")
    'P1 a-b'
    """
    text = "".join(
        c for c in unicodedata.normalize("NFKC", key) if unicodedata.category(c) not in ("Cf", "Cc")
    )
    return re.sub(r"[\u2010-\u2015\u2212]", "-", " ".join(text.split()))


def _without_zeros(key: str) -> str:
    return key.lstrip("0") or key


def _without_point(key: str) -> str:
    return re.sub(r"(?<=\d)\.0+$", "", key)


def _without_separators(key: str) -> str:
    return re.sub(r"[-_. /]+", "-", visible(key)).casefold()


_AS_TEXT = "a spreadsheet or data frame has read the keys as numbers: save that column as text"
#: From the least to the most different.
SPELLINGS = (
    Spelling(
        "without leading zeros", "a spreadsheet has cut zeros off; save that column as text", _without_zeros
    ),
    Spelling("without '.0' at the end", _AS_TEXT, _without_point),
    Spelling("in another case", "write both in the same case", str.casefold),
    Spelling(
        "in another Unicode form or without invisible characters",
        "type these keys again, or save both tables without invisible characters, in one Unicode form (NFC)",
        visible,
    ),
    Spelling(
        "with other separators",
        "write the same separators in both; R turns - into . in names of rows and columns",
        _without_separators,
    ),
    Spelling(
        "as barcodes of samples or slides",
        "add a column with the first three fields of the barcodes",
        patient_code,
    ),
)


@dataclass(frozen=True)
class NearKeys:
    """Keys of one table that are nearly those of another.

    Attributes
    ----------
    spelling
        How they differ.
    pairs
        (key of this table, key of the other).
    """

    spelling: Spelling
    pairs: tuple[tuple[str, str], ...]

    def text(self, other: str = "the clinical table") -> str:
        """``2 keys match the clinical table only in another case ('p1' against 'P1', …)``."""
        shown = ", ".join(f"{one!r} against {two!r}" for one, two in self.pairs[:EXAMPLES])
        more = ", …" if len(self.pairs) > EXAMPLES else ""
        noun, verb = ("key", "matches") if len(self.pairs) == 1 else ("keys", "match")
        return f"{len(self.pairs)} {noun} {verb} {other} only {self.spelling.differs} ({shown}{more})"


def near_keys(listed: Iterable[str], known: Iterable[str]) -> list[NearKeys]:
    """Listed keys that are not known but nearly equal one that is not listed, by how they differ.

    Parameters
    ----------
    listed, known
        Keys of a table, and those of the clinical table.

    Examples
    --------
    >>> near_keys(["07", "8"], ["7", "8"])[0].text()
    "1 key matches the clinical table only without leading zeros ('07' against '7')"
    """
    listed, known = list(dict.fromkeys(listed)), list(dict.fromkeys(known))
    there = set(known)
    strangers = [key for key in listed if key not in there]
    spare = set(known) - set(listed)
    result = []
    for spelling in SPELLINGS if strangers and spare else ():
        # Barcodes of several slides are one patient, who may also be listed as such.
        candidates = there if spelling.form is patient_code else spare
        by_form: dict[str, str] = {}
        for key in candidates:
            form = spelling.form(key)
            by_form[form] = "" if form in by_form else key  # of several, none is meant
        pairs = tuple((key, match) for key in strangers if (match := by_form.get(spelling.form(key))))
        if pairs:
            result.append(NearKeys(spelling, pairs))
            taken = {key for key, _ in pairs}
            strangers = [key for key in strangers if key not in taken]
    return result


def near_fix(near: Sequence[NearKeys]) -> str:
    """What to do where no key of a table is in the other."""
    said = "; ".join(f"{one.text()}: {one.spelling.remedy}" for one in near)
    return said or "make the patient keys of both tables equal, letter by letter"


def similar_keys(keys: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different keys that look like one: equal but for case, invisible characters or a ``.0``.

    >>> similar_keys(["P1", "p1", "P2", "7", "7.0", "07"])
    [('P1', 'p1'), ('7', '7.0')]
    """
    groups: dict[str, dict[str, None]] = {}
    for key in keys:
        groups.setdefault(_without_point(visible(key).casefold()), {})[key] = None
    return [tuple(group) for group in groups.values() if len(group) > 1]


def similar_note(place: str, owner: Mapping[str, str], *, across: bool = False) -> str | None:
    """A remark on keys that look like one patient.

    Parameters
    ----------
    place
        Where the keys stand.
    owner
        Key → cohort.
    across
        Only keys that stand in several cohorts.
    """
    groups = [g for g in similar_keys(owner) if not across or len({owner[key] for key in g}) > 1]
    if not groups:
        return None
    shown = "; ".join(" and ".join(map(repr, group)) for group in groups[:EXAMPLES])
    more = "; …" if len(groups) > EXAMPLES else ""
    return (
        f"{place}: {len(groups)} patients seem to stand under several keys that differ in case, invisible characters "
        f"or a '.0' ({shown}{more}); as different patients they may be trained on and tested: make the keys equal"
    )

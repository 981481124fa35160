"""Pairs of time and event among the columns of a clinical table, as public tables name them.

PORPOISE and MCAT (``survival_months``, ``censorship``), SurvPath (``survival_months_dss``, ``censorship_dss``),
TCGA-CDR (``OS.time``, ``OS``, ``DSS``, ``PFI``, ``DFI``), cBioPortal (``Overall Survival (Months)``, ``0:LIVING``), GDC
(``days_to_death``, ``days_to_last_follow_up``, ``vital_status``) and plain ones (``time``, ``event``). What a name does
not say, the unit or which value is the event, is proposed from the values, and a remark says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from equipoise.datasets.params import label_key
from equipoise.datasets.tables.cells import MISSING
from equipoise.datasets.tables.targets import parse_number

if TYPE_CHECKING:
    import pandas as pd

# fmt: off
UNITS = {
    "day": "days", "days": "days", "month": "months", "months": "months", "mo": "months", "mos": "months",
    "year": "years", "years": "years", "yr": "years", "yrs": "years",
}
#: Words that make a column a time, and words that make it an event; the rest of a name is the endpoint.
TIME_WORDS = frozenset((
    "time", "times", "duration", "durations", "survival", "surv", "followup", "follow", "futime", "t", "to", "last",
    "known", "alive", "contact", "event", "death", "fu",
))
EVENT_WORDS = frozenset((
    "status", "event", "events", "censorship", "censored", "censoring", "censor", "cens", "vital", "e", "death", "dead",
    "deceased", "died", "fustat", "indicator", "happened", "is", "survival", "surv",
    "uncensored",
))
#: Words that say nothing about the endpoint.
FILLERS = frozenset((
    "overall", "os", "in", "of", "from", "the", "since", "up", "until", "free", "patient", "patients", "initial", "at",
))
#: Words of an endpoint that are written in several ways.
SAME_WORDS = {"progress": "progression", "relapse": "recurrence", "metastases": "metastasis"}
#: Endpoints in words → their usual name.
ENDPOINTS = {
    frozenset(("progression",)): "PFS", frozenset(("disease",)): "DFS", frozenset(("disease", "specific")): "DSS",
    frozenset(("recurrence",)): "RFS", frozenset(("metastasis",)): "MFS",
}
#: Names of endpoints that are those of an event column by themselves (TCGA-CDR).
SHORT_NAMES = frozenset(("os", "dss", "pfi", "dfi", "pfs", "dfs", "rfs", "mfs"))
HAPPENED = frozenset((
    "dead", "deceased", "death", "died", "event", "yes", "true", "progressed", "progression", "recurred", "relapsed",
    "recurrence", "relapse", "recurred/progressed", "progressed/recurred", "uncensored",
))
CENSORED = frozenset((
    "alive", "living", "censored", "no", "false", "diseasefree", "disease free", "no event", "none",
    "alive or dead tumor free", "not progressed", "progression free", "lost to follow-up",
))
#: Values that tell nothing about a status or a class.
UNKNOWN = frozenset((
    "unknown", "not reported", "not available", "not applicable", "not evaluated", "indeterminate", "n.d.", "nd",
    "n.a.", "?", "unspecified", "[unknown]", "[discrepancy]", "missing", "not determined", "not performed",
))
#: Words of columns that are no time of follow-up although they hold a unit.
NO_FOLLOW_UP = frozenset((
    "age", "birth", "diagnosis", "collection", "year", "start", "stop", "sample", "initial", "treatment", "therapy",
))
# fmt: on


@dataclass(frozen=True)
class SurvivalPair:
    """A proposed survival task.

    Attributes
    ----------
    name
        Of the endpoint: OS, DSS, …
    time, otherwise
        Columns of the time, and of the time of those who lack the first (GDC).
    unit
        ``days``, ``months`` or ``years``.
    event
        Column of the status.
    happened, censored, unknown
        Its values.
    remarks
        What was guessed.
    """

    name: str
    time: str
    otherwise: str | None
    unit: str
    event: str
    happened: tuple[str, ...]
    censored: tuple[str, ...]
    unknown: tuple[str, ...]
    remarks: tuple[str, ...]


def survival_pairs(
    table: pd.DataFrame, time: str | None = None, event: str | None = None
) -> list[SurvivalPair]:
    """All pairs of a table, overall survival first.

    Parameters
    ----------
    table
        Text without the key columns.
    time, event
        Columns that are the first pair whatever they are called; ``event`` alone is paired by its name.
    """
    times = {c: _endpoint(c, TIME_WORDS) for c in table.columns if c != event and _is_time(c, table)}
    events = {c: _endpoint(c, EVENT_WORDS) for c in table.columns if c not in times and _is_event(c, table)}
    if event is not None:
        events[event] = _endpoint(event, EVENT_WORDS)
    pairs: list[SurvivalPair] = []
    if time is not None:
        named = event or _partner(_endpoint(time, TIME_WORDS), events) or next(iter(events), None)
        if named is not None and (pair := _pair(table, time, None, named)) is not None:
            pairs.append(pair)
    for column, endpoint in _without_split_times(times).items():
        partner = event if event is not None and events[event] == endpoint else _partner(endpoint, events)
        if partner is None or column == time or (time is not None and partner == event):
            continue
        pair = _pair(table, column, _other_time(column, times), partner)
        if pair is not None and pair.name not in {p.name for p in pairs}:
            pairs.append(pair)
    chosen = time is not None
    return pairs[:chosen] + sorted(pairs[chosen:], key=lambda pair: pair.name != "OS")


def words_of(name: str) -> list[str]:
    """A column's name in lower-case words: ``OS.time`` and ``Overall Survival (Months)``."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return re.findall(r"[a-z]+|\d+", spaced.casefold())


def time_unit(name: str) -> str | None:
    """The unit that a column's name says."""
    return next((UNITS[word] for word in words_of(name) if word in UNITS), None)


def is_censoring(name: str) -> bool:
    """Whether 1 in such a column usually means censored."""
    return "censor" in name.casefold() and "uncensor" not in name.casefold()


def _endpoint(name: str, role: frozenset[str]) -> frozenset[str]:
    words = {w for w in words_of(name) if w not in FILLERS and w not in UNITS and w not in role}
    return frozenset(SAME_WORDS.get(word, word) for word in words)


def _is_time(name: str, table: pd.DataFrame) -> bool:
    words = set(words_of(name))
    if words & NO_FOLLOW_UP or not (words & TIME_WORDS or (time_unit(name) and words)):
        return False
    known = [cell for cell in table[name] if cell not in MISSING and cell.casefold() not in UNKNOWN]
    numbers = [number for cell in known if (number := parse_number(cell)) is not None]
    enough = len(numbers) >= max(3, 0.8 * len(known))
    return (
        enough
        and len(set(numbers)) > min(10, len(numbers) // 3)
        and sum(n > 0 for n in numbers) > 0.8 * len(numbers)
    )


def _is_event(name: str, table: pd.DataFrame) -> bool:
    values = _statuses(table[name])
    if not 2 <= len(values) <= 6:
        return False
    words = set(words_of(name))
    named = bool(words & EVENT_WORDS) or bool(words & SHORT_NAMES)
    happened, censored, _ = _sorted_statuses(name, values)
    return named and bool(happened) and bool(censored)


def _statuses(column: pd.Series) -> list[str]:
    return sorted({label_key(cell) for cell in column if cell not in MISSING})


def _sorted_statuses(name: str, values: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Values that mean the event, censoring, and neither; the first two are empty where that is not clear."""
    unknown = [v for v in values if v.casefold() in UNKNOWN]
    rest = [v for v in values if v not in unknown]
    if set(rest) == {"0", "1"}:
        return (["0"], ["1"], unknown) if is_censoring(name) else (["1"], ["0"], unknown)
    if set(rest) == {"1", "2"} and not is_censoring(name):
        return ["2"], ["1"], unknown  # R's survival
    coded = {v: re.match(r"([01])\s*:", v) for v in rest}
    if rest and all(coded.values()):
        return ([v for v in rest if v[0] == "1"], [v for v in rest if v[0] == "0"], unknown)
    happened = [v for v in rest if v.casefold() in HAPPENED]
    censored = [v for v in rest if v.casefold() in CENSORED]
    if is_censoring(name) and {v.casefold() for v in rest} <= {"yes", "no", "true", "false"}:
        happened, censored = censored, happened
    return (happened, censored, unknown) if len(happened) + len(censored) == len(rest) else ([], [], unknown)


def _partner(endpoint: frozenset[str], events: dict[str, frozenset[str]]) -> str | None:
    """The event column of the same endpoint; death and vital status belong to overall survival."""
    return next((column for column, other in events.items() if other == endpoint), None)


def _without_split_times(times: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Without the time of follow-up that only completes a time to death."""
    second = {other for column in times if (other := _other_time(column, times))}
    return {column: endpoint for column, endpoint in times.items() if column not in second}


def _other_time(column: str, times: dict[str, frozenset[str]]) -> str | None:
    """``days_to_last_follow_up`` for ``days_to_death``: each is empty where the other is known."""
    if "death" not in words_of(column):
        return None
    return next((c for c in times if {"follow", "followup", "contact", "alive"} & set(words_of(c))), None)


def _pair(table: pd.DataFrame, time: str, otherwise: str | None, event: str) -> SurvivalPair | None:
    values = _statuses(table[event])
    happened, censored, unknown = _sorted_statuses(event, values)
    remarks = []
    if not happened:
        rest = [v for v in values if v.casefold() not in UNKNOWN]
        if len(rest) != 2:
            return None
        happened, censored = [rest[1]], [rest[0]]
        remarks.append(f"{happened[0]!r} in {event!r} is taken for the event")
    elif is_censoring(event):
        remarks.append(f"1 in {event!r} is read as censored")
    unit = time_unit(time)
    if unit is None:
        unit = _likely_unit(table[time])
        remarks.append(f"{time!r} does not say its unit: {unit} fit its values")
    return SurvivalPair(
        _name(time, event),
        time,
        otherwise,
        unit,
        event,
        tuple(happened),
        tuple(censored),
        tuple(unknown),
        tuple(remarks),
    )


def _name(time: str, event: str) -> str:
    for endpoint in (_endpoint(time, TIME_WORDS), _endpoint(event, EVENT_WORDS)):
        if endpoint:
            short = re.sub(r"[^A-Za-z0-9]+", "_", "_".join(sorted(endpoint))).upper()
            return ENDPOINTS.get(endpoint, short)
    return "OS"


def _likely_unit(column: pd.Series) -> str:
    """Nobody is followed for more than some fifty years, and hardly a cohort for less than two."""
    numbers = sorted(n for cell in column if (n := parse_number(cell)) is not None and n > 0)
    if not numbers:
        return "days"
    high = numbers[int(0.95 * (len(numbers) - 1))]
    return "days" if high > 400 else "months" if high > 15 else "years"

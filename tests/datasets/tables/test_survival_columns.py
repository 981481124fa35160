"""Pairs of time and event as public tables name them, with the meaning that their authors give."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.tables.survival_columns import survival_pairs, time_unit

N = 40
ODD = np.arange(N) % 2


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {name.replace("__", " "): list(map(str, v)) for name, v in columns.items()}, dtype=object
    )


def times(high: float, seed: int = 0) -> list[str]:
    return [f"{x:.2f}" for x in np.random.default_rng(seed).uniform(0.02 * high, high, N)]


def described(frame: pd.DataFrame, **options: Any) -> list[tuple]:
    return [
        (p.name, p.time, p.unit, p.event, "/".join(p.happened), "/".join(p.censored))
        for p in survival_pairs(frame, **options)
    ]


def test_porpoise_and_survpath() -> None:
    frame = table(
        survival_months=times(120), censorship=ODD, survival_months_dss=times(120, 1), censorship_dss=1 - ODD
    )
    assert described(frame) == [
        ("OS", "survival_months", "months", "censorship", "0", "1"),
        ("DSS", "survival_months_dss", "months", "censorship_dss", "0", "1"),
    ]


def test_tcga_cdr_has_four_endpoints_in_days() -> None:
    columns: dict[str, Any] = {}
    for i, name in enumerate(["DFI", "PFI", "OS", "DSS"]):
        columns |= {name: (ODD + i) % 2, f"{name}.time": times(3000, i)}
    pairs = survival_pairs(table(**columns))
    assert [(p.name, p.time, p.event, p.unit) for p in pairs] == [
        (name, f"{name}.time", name, "days") for name in ("OS", "DFI", "PFI", "DSS")
    ]
    assert all("does not say its unit" in p.remarks[0] for p in pairs)


def test_cbioportal() -> None:
    frame = table(
        Overall__Survival__Months=times(90),
        Overall__Survival__Status=np.where(ODD, "1:DECEASED", "0:LIVING"),
        DFS_MONTHS=times(90, 1),
        DFS_STATUS=np.where(ODD, "0:DiseaseFree", "1:Recurred/Progressed"),
        Progress__Free__Survival__Months=times(90, 2),
        Progression__Free__Status=np.where(ODD, "1:PROGRESSION", "0:CENSORED"),
    )
    assert described(frame) == [
        ("OS", "Overall Survival Months", "months", "Overall Survival Status", "1:DECEASED", "0:LIVING"),
        ("DFS", "DFS_MONTHS", "months", "DFS_STATUS", "1:Recurred/Progressed", "0:DiseaseFree"),
        (
            "PFS",
            "Progress Free Survival Months",
            "months",
            "Progression Free Status",
            "1:PROGRESSION",
            "0:CENSORED",
        ),
    ]


def test_the_gdc_has_two_times_and_a_status() -> None:
    dead = np.where(ODD, times(3000), "'--")
    alive = np.where(ODD, "'--", times(4000, 1))
    status = np.where(ODD, "Dead", "Alive").astype(object)
    status[4] = "Not Reported"
    frame = table(
        days_to_birth=times(30000), days_to_last_follow_up=alive, days_to_death=dead, vital_status=status
    )
    (pair,) = survival_pairs(frame)
    assert (pair.time, pair.otherwise, pair.unit) == ("days_to_death", "days_to_last_follow_up", "days")
    assert (pair.happened, pair.censored, pair.unknown) == (("Dead",), ("Alive",), ("Not Reported",))


@pytest.mark.parametrize(
    ("time", "event", "values", "high", "unit", "happened"),
    [
        ("T", "E", ["0", "1"], 5000, "days", "1"),
        ("durations", "vital_status", ["0", "1"], 200, "months", "1"),
        ("time", "status", ["1", "2"], 1000, "days", "2"),  # R's survival
        ("futime", "fustat", ["0.0", "1.0"], 12, "years", "1"),
        ("follow_up_years", "death", ["no", "yes"], 12, "years", "yes"),
        ("Days to last known alive", "Vital status", ["Alive", "Dead"], 3000, "days", "Dead"),
        ("time", "uncensored", ["0", "1"], 100, "months", "1"),
        ("time", "censored", ["no", "yes"], 100, "months", "no"),
    ],
)
def test_plain_names(time: str, event: str, values: list[str], high: float, unit: str, happened: str) -> None:
    frame = pd.DataFrame({time: times(high), event: [values[i] for i in ODD]}, dtype=object)
    (pair,) = survival_pairs(frame)
    assert (pair.time, pair.event, pair.unit, pair.happened) == (time, event, unit, (happened,))


def test_what_is_no_follow_up() -> None:
    frame = table(
        age_at_death=times(90),
        Age__at__Last__Known__Clinical__Status=times(90),
        years_smoked=["3"] * N,
        vital_status=np.where(ODD, "Dead", "Alive"),
        MSI_status=np.where(ODD, "MSI-H", "MSS"),
    )
    assert described(frame) == []


def test_named_columns_come_first_whatever_they_are_called() -> None:
    frame = table(OS_MONTHS=times(90), OS=ODD, weeks=times(400), relapsed__ever=np.where(ODD, "ja", "nein"))
    assert described(frame, time="weeks", event="relapsed ever") == [
        ("WEEKS", "weeks", "months", "relapsed ever", "nein", "ja"),
        ("OS", "OS_MONTHS", "months", "OS", "1", "0"),
    ]
    assert (
        survival_pairs(frame, "weeks", "relapsed ever")[0].remarks[0]
        == "'nein' in 'relapsed ever' is taken for the event"
    )


def test_units_in_names() -> None:
    names = ["OS_MONTHS", "days_to_death", "Overall Survival (Years)", "PFSmonths", "T", "mos"]
    assert [time_unit(name) for name in names] == ["months", "days", "years", None, None, "months"]

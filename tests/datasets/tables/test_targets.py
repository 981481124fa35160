"""Labels, cut-offs, measurements and survival become numbers; what does not has a reason."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter

from equipoise.datasets.errors import DataError
from equipoise.datasets.tables.label_maps import same_label, yaml_quoted
from equipoise.datasets.tables.targets import (
    EncodedTask,
    TargetScaler,
    Task,
    encode,
    interval_edges,
    parse_number,
)
from equipoise.datasets.tables.tasks import SurvivalTask

TASK = TypeAdapter(Task)
NAN = float("nan")


def table(**columns: list[str]) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    return pd.DataFrame(columns, index=pd.Index([f"p{i}" for i in range(n)], name="patient"), dtype=object)


def task(**values: Any) -> Any:
    return TASK.validate_python({"name": "T", "column": "x", **values})


def texts(result: EncodedTask) -> dict[str, str]:
    return {patient: reason.text for patient, reason in result.reasons.items()}


def test_binary_labels() -> None:
    spec = task(type="binary", positive="MSI-H", negative=["MSS"], exclude=["MSI-L"])
    result = encode(spec, table(x=["MSI-H", "MSS", "MSI-L", "NA", ""]))
    np.testing.assert_array_equal(result.value, [1, 0, NAN, NAN, NAN])
    assert texts(result) == {
        "p2": "label 'MSI-L' is excluded",
        "p3": "'NA' counts as missing",
        "p4": "no value",
    }
    assert result.known.tolist() == [True, True, False, False, False]


def test_with_two_values_the_other_one_is_negative() -> None:
    result = encode(task(type="binary", positive=1), table(x=["1.0", "0.0", "1", "NA"]))
    np.testing.assert_array_equal(result.value, [1, 0, 1, NAN])


def test_a_third_value_must_be_decided() -> None:
    with pytest.raises(DataError) as caught:
        encode(task(type="binary", positive="MSI-H"), table(x=["MSI-H", "MSS", "MSS", "MSI-L", "NA"]))
    assert "values 'MSI-L', 'MSS' are neither a class nor excluded" in caught.value.what
    assert "MSS 2, MSI-H 1, MSI-L 1" in caught.value.what
    assert caught.value.where == "task 'T', column 'x'"
    assert caught.value.fix is not None
    assert "negative: [MSI-L, MSS] | exclude: [MSI-L, MSS]" in caught.value.fix


def test_a_value_beside_an_explicit_negative_must_be_decided_too() -> None:
    with pytest.raises(DataError, match="value 'mss' is neither.*nearest: 'MSS'"):
        encode(task(type="binary", positive="MSI-H", negative="MSS"), table(x=["MSI-H", "MSS", "mss"]))


def test_a_positive_value_that_never_occurs() -> None:
    with pytest.raises(DataError, match="no patient has a value of class 'positive: MSIH'"):
        encode(task(type="binary", positive="MSIH", negative=["MSS", "MSI-H"]), table(x=["MSI-H", "MSS"]))
    with pytest.raises(DataError, match="class 'negative'"):
        encode(task(type="binary", positive="a"), table(x=["a", "a", ""]))


def test_a_label_map_wins_over_missing() -> None:
    result = encode(task(type="binary", positive="NA", negative="01"), table(x=["NA", "01", "NaN"]))
    np.testing.assert_array_equal(result.value, [1, 0, NAN])


def test_cutoff() -> None:
    result = encode(task(type="binary", cutoff=42), table(x=["41.9", "42", "100", "NA", "high"]))
    np.testing.assert_array_equal(result.value, [0, 1, 1, NAN, NAN])
    assert result.reasons["p4"].text == "'high' is not a number"


def test_multiclass_merges_and_orders() -> None:
    spec = task(
        type="multiclass", classes={"IDC": "ductal", "ILC": "lobular", "MDLC": "ductal"}, exclude="PD"
    )
    result = encode(spec, table(x=["ILC", "IDC", "MDLC", "PD"]))
    np.testing.assert_array_equal(result.value, [1, 0, 0, NAN])
    with pytest.raises(
        DataError,
        match=r"classes: \{IDC: ductal, ILC: lobular, MDLC: ductal, BRCNOS: CLASS\} \| exclude: \[PD, BRCNOS\]",
    ):
        encode(spec, table(x=["ILC", "IDC", "BRCNOS"]))


def test_regression_keeps_units_and_names_what_is_no_number() -> None:
    result = encode(
        task(type="regression", exclude=-9), table(x=["0.5", "-1", "75;55", "inf", "-9.0", "nan"])
    )
    np.testing.assert_array_equal(result.value, [0.5, -1, NAN, NAN, NAN, NAN])
    assert result.reasons["p2"].text == "'75;55' is not a number"
    assert result.reasons["p3"].text == "'inf' is infinite"
    assert result.reasons["p4"].text == "value '-9.0' is excluded"
    assert [result.reasons[f"p{i}"].expected for i in range(2, 6)] == [False, False, True, True]


def test_decimal_commas_are_seen() -> None:
    with pytest.raises(DataError, match="decimal points instead of commas"):
        encode(task(type="regression"), table(x=["0,5", "1,5", "2"]))
    with pytest.raises(DataError, match="binary or multiclass"):
        encode(task(type="regression"), table(x=["low", "high"]))
    with pytest.raises(DataError, match="no patient has a number"):
        encode(task(type="regression"), table(x=["NA", ""]))


def test_a_missing_column_names_the_nearest() -> None:
    with pytest.raises(DataError, match="no column 'x'; nearest: 'X'"):
        encode(task(type="regression"), table(X=["1"]))


def survival(**event: Any) -> Any:
    time = {"column": "months", "unit": "months"}
    return TASK.validate_python({"name": "OS", "type": "survival", "time": time, "event": event})


def test_survival_in_days_with_inverted_censorship() -> None:
    result = encode(
        survival(column="censorship", event_value=0),
        table(months=["12", "1", "0", "-3", "NA", "24"], censorship=["1.0", "0.0", "0.0", "1.0", "0.0", ""]),
    )
    np.testing.assert_allclose(result.time, [365.25, 30.4375, NAN, NAN, NAN, NAN])
    np.testing.assert_array_equal(result.event, [0, 1, NAN, NAN, NAN, NAN])
    assert texts(result) == {
        "p2": "time 0 months is not after the start of follow-up",
        "p3": "time -3 months is not after the start of follow-up",
        "p4": "'NA' counts as missing",
        "p5": "status: no value",
    }
    assert list(result.columns()) == ["OS.time", "OS.event"]


def test_survival_status_with_three_values_must_be_decided() -> None:
    rows = table(months=["1", "2", "3"], OS=["Dead", "Alive", "Lost"])
    with pytest.raises(DataError, match=r"censored_value: \[Alive, Lost\]"):
        encode(survival(column="OS", event_value="Dead"), rows)
    result = encode(survival(column="OS", event_value="Dead", censored_value="Alive", exclude="Lost"), rows)
    np.testing.assert_array_equal(result.event, [1, 0, NAN])


def test_everybody_may_have_had_the_event() -> None:
    result = encode(survival(column="OS", event_value=1), table(months=["1", "2"], OS=["1", "1"]))
    np.testing.assert_array_equal(result.event, [1, 1])


def test_intervals_have_equally_many_events() -> None:
    days = np.arange(1.0, 13)
    edges = interval_edges(days, np.ones(12), 4)
    assert edges == (4.0, 7.0, 10.0)
    assert np.histogram(days, [0, *edges, np.inf])[0].tolist() == [3, 3, 3, 3]
    late_and_censored = interval_edges(np.append(days, 900.0), np.append(np.ones(12), 0), 4)
    assert late_and_censored == edges


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=30), st.integers(1, 6))
def test_every_interval_has_an_event(rows: list[tuple[int, bool]], bins: int) -> None:
    time, event = (np.array([row[i] for row in rows], float) for i in (0, 1))
    edges = interval_edges(time, event, bins)
    assert len(edges) < bins
    if event.any():
        assert np.histogram(time[event == 1], [0, *edges, np.inf])[0].all()
    else:
        assert edges == ()


@settings(max_examples=60, deadline=None)
@given(
    values=arrays(np.float64, st.integers(2, 30), elements=st.floats(-1e6, 1e6)),
    shift=st.floats(-1e6, 1e6),
    scale=st.floats(1e-3, 1e6),
)
def test_scaling_and_back(values: np.ndarray, shift: float, scale: float) -> None:
    scaler = TargetScaler("standard", shift, scale)
    np.testing.assert_allclose(scaler.inverse(scaler.transform(values)), values, rtol=1e-9, atol=1e-9)
    assert TargetScaler.from_json(scaler.to_json()) == scaler


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ("n.d.", "not a number"),
        ("0.1.2", "not a number"),
        ("1_000", "not a number"),
        ("1,234", "a comma in the number"),
        ("1,234,567.5", "a comma in the number"),
        ("-inf", "infinite"),
        ("1e999", "infinite"),
        ("0", "a time that is not after the start of follow-up"),
        ("-12", "a time that is not after the start of follow-up"),
        ("999999", "a time longer than 150 years"),
    ],
)
def test_a_time_that_cannot_be_used_has_its_own_reason(raw: str, kind: str) -> None:
    spec = survival(column="DEAD", event_value=1, censored_value=0)
    result = encode(spec, table(months=["10", raw, "20"], DEAD=["1", "1", "0"]))
    assert result.known.tolist() == [True, False, True]
    assert (result.reasons["p1"].kind, result.reasons["p1"].value) == (kind, raw)
    assert not result.reasons["p1"].expected


def test_times_in_another_unit_are_refused() -> None:
    years = {"column": "days", "unit": "years"}
    event = {"column": "DEAD", "event_value": 1}
    spec = TASK.validate_python({"name": "OS", "type": "survival", "time": years, "event": event})
    with pytest.raises(
        DataError, match=r"2 of 3 times are longer than 150 years, read in years \(700, 1200\)"
    ):
        encode(spec, table(days=["700", "3", "1200"], DEAD=["1", "0", "1"]))


@pytest.mark.parametrize(
    ("values", "exclude"),
    [
        ("0 1 -9 2 -9", "[-9]"),
        ("0.5 0.7 999 0.1", "[999]"),
        ("-1 -0.5 0.3 1", None),  # among negative values, -1 is one of them
        ("800 999 1200", None),
        ("-9 -9", None),
    ],
)
def test_numbers_that_stand_for_missing_are_remarked(values: str, exclude: str | None) -> None:
    notes = encode(task(type="regression"), table(x=values.split())).notes
    assert [note.rpartition("exclude: ")[2] for note in notes] == ([exclude] if exclude else [])


def offered(spec: Any, rows: pd.DataFrame) -> str:
    with pytest.raises(DataError) as caught:
        encode(spec, rows)
    assert caught.value.fix is not None
    return caught.value.fix


def test_another_spelling_is_offered_for_its_own_class() -> None:
    fix = offered(
        task(type="binary", positive="MSI-H", negative="MSS"),
        table(x=["MSI-H", "msi-h", "MSI H", "MSS", "mss", "MSI\u2010H"]),
    )
    assert fix == (
        'if that is what they mean, write positive: [MSI-H, MSI H, "MSI\\u2010H", msi-h], negative: [MSS, mss]'
    )


def test_lines_that_are_offered_make_the_map_complete() -> None:
    """What is offered is pasted over what was written; nothing is lost, nobody changes the class."""
    import re

    import yaml as pyyaml

    written: dict[str, Any] = {"positive": "MSI-H", "negative": ["MSS"], "exclude": ["Unknown"]}
    rows = table(x=["MSI-H", "msi-h", "MSS", "mss", "MSI-L", "unknown", "n.d.", "NA"])
    fix = offered(task(type="binary", **written), rows)
    for line in re.findall(r"\w+: \[[^]]*\]", fix):  # the last choice, exclude, is pasted last
        written |= pyyaml.safe_load(line) if "MSI-L" not in line or line.startswith("exclude") else {}
    result = encode(task(type="binary", **written), rows)
    np.testing.assert_array_equal(result.value, [1, 1, 0, 0, NAN, NAN, NAN, NAN])


@pytest.mark.parametrize("other", ["msi-h", "MSI\u2011H", "unknown", "n.d.", "Not reported", "None", "-"])
def test_the_only_other_value_is_no_class_if_it_is_a_spelling_or_a_gap(other: str) -> None:
    assert "decide" in (fix := offered(task(type="binary", positive="MSI-H"), table(x=["MSI-H", other]))) or (
        "if that is what they mean" in fix
    )


def test_plus_and_minus_are_two_classes() -> None:
    result = encode(task(type="binary", positive="+"), table(x=["+", "-", "-"]))
    np.testing.assert_array_equal(result.value, [1, 0, 0])


def test_classes_are_offered_with_the_whole_mapping() -> None:
    spec = task(type="multiclass", classes=["CMS1", "CMS2"], exclude="NOLBL")
    assert offered(spec, table(x=["CMS1", "cms1", "CMS2", "nolbl"])) == (
        "if that is what they mean, write classes: {CMS1: CMS1, CMS2: CMS2, cms1: CMS1}, exclude: [NOLBL, nolbl]"
    )


@pytest.mark.parametrize(
    ("one", "other"), [("ER+", "ER-"), ("1-2", "12"), ("T1", "T2"), ("0.5", "5"), ("1/2", "12"), ("01", "1")]
)
def test_different_labels_stay_different(one: str, other: str) -> None:
    assert same_label(one) != same_label(other)


@given(st.text(max_size=10))
def test_parse_number_never_raises(text: str) -> None:
    number = parse_number(text)
    assert number is None or np.isfinite(number)


@pytest.mark.parametrize(
    ("label", "yaml"),
    [
        ("MSI-H", "MSI-H"),
        ("No", '"No"'),
        ("a: b", '"a: b"'),
        ("12", "12"),
        ("0", "0"),
        ("01", '"01"'),
        ("010", '"010"'),
        ("²", '"\\u00b2"'),
        ("Stage II", "Stage II"),
        ("#1", '"#1"'),
    ],
)
def test_labels_in_remedies_can_be_pasted(label: str, yaml: str) -> None:
    import yaml as pyyaml

    assert yaml_quoted(label) == yaml
    assert str(pyyaml.safe_load(f"[{yaml_quoted(label)}]")[0]) == label


def test_a_second_time_where_the_first_is_empty() -> None:
    """The GDC: days to death of the dead, days to the last follow-up of the others."""
    task = SurvivalTask.model_validate(
        {
            "name": "OS",
            "type": "survival",
            "time": {"column": "death", "otherwise": "last", "unit": "days"},
            "event": {"column": "status", "event_value": "Dead"},
        }
    )
    rows = {"death": ["10", "'--", "'--"], "last": ["9", "20", ""], "status": ["Dead", "Alive", "Alive"]}
    encoded = encode(task, pd.DataFrame(rows, index=["a", "b", "c"]))
    assert encoded.time[:2].tolist() == [10, 20]
    assert encoded.known.tolist() == [True, True, False]
    assert task.columns == ("death", "last", "status")

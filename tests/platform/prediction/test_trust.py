"""Sets, drift, quality and abstention together, their state, and the page of a patient."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.index import blank_row
from equipoise.datasets.store.spec import StoreSpec
from equipoise.platform.errors import DataError
from equipoise.platform.prediction.drift import SlideSet
from equipoise.platform.prediction.patient_page import ModelRecord, PatientRecord, patient_page
from equipoise.platform.prediction.slide_sets import slide_set
from equipoise.platform.prediction.trust import Trust


def predictions(role: str, names: list[str], rng: np.random.Generator, folds: int = 2) -> pd.DataFrame:
    """A binary, a regression and a survival task; every patient by every fold model, or by that of its fold."""
    parts = []
    for fold in range(folds):
        of_fold = names if role == "external" else names[fold::folds]
        n = len(of_fold)
        hidden = rng.normal(size=n)
        known = {"patient": of_fold, "cohort": "A", "site": "S", "repeat": 0, "fold": fold, "role": role}
        nothing = {"target": np.nan, "time": np.nan, "event": np.nan}
        score = 1 / (1 + np.exp(-4 * hidden))
        msi = {"task": "MSI", "class": "MSIH", "score": score, "target": (hidden > 0) * 1.0}
        liss = {"task": "LISS", "class": "", "score": hidden, "target": hidden + rng.normal(size=n)}
        time = 300 * np.exp(-hidden) * rng.exponential(size=n)
        os = {"task": "OS", "class": "", "score": hidden, "time": time, "event": 1.0}
        parts += [pd.DataFrame({**known, **nothing, **task}) for task in (msi, liss, os)]
    return pd.concat(parts, ignore_index=True)


def slides(names: list[str], rng: np.random.Generator, shift: float = 0.0) -> SlideSet:
    """One slide each."""
    n = len(names)
    values = {"mpp": np.full(n, 0.5), "tissue_mm2": rng.uniform(20, 40, n), "tiles": rng.uniform(100, 200, n)}
    stems = [f"{name}-DX1" for name in names]
    return SlideSet(stems, names, ["A"] * n, {"embedding": rng.normal(size=(n, 5)) + shift}, values)


@pytest.fixture(scope="module")
def fitted() -> Trust:
    rng = np.random.default_rng(0)
    names = [f"TCGA-{i:03d}" for i in range(120)]
    table = pd.concat([predictions("val", names[:60], rng), predictions("test", names, rng)])
    return Trust.fit(table, slides(names, rng))


def index(names: list[str]) -> pd.DataFrame:
    row = {"status": "ok", "n": 150, "mpp": 0.5, "mpp_source": "table"}
    return pd.DataFrame([blank_row(slide=f"{name}-DX1", patient=name, **row) for name in names])


def test_new_patients_get_sets_flags_and_answers_before_and_after_the_file(fitted: Trust) -> None:
    rng = np.random.default_rng(1)
    names = ["N1", "N2", "N3", "N4", "N5", "N6"]
    asked = predictions("external", names, rng).assign(target=np.nan, time=np.nan, event=np.nan)
    new = slides(names, rng)
    new.vectors["embedding"][2] += 9
    found = fitted.assess(asked, new, index(names))
    table = found.by_patient()
    assert len(table) == 18
    assert set(table.loc[table["patient"] == "N3", "abstained"]) == {True}
    assert table.loc[table["patient"] == "N3", "reasons"].str.contains("mean features of the tiles").all()
    assert table.loc[table["patient"] == "N3", "drift_percentile"].eq(1).all()
    msi = table[table["task"] == "MSI"].set_index("patient")
    assert set(msi["set"]) <= {"MSIH", "not MSIH", "not MSIH | MSIH", "none"}
    answered = msi[~msi["abstained"]]
    assert len(answered)
    assert (answered["answer"] == answered["set"]).all()
    liss = table[table["task"] == "LISS"]
    assert (liss["low"] < liss["high"]).all()
    assert (table.loc[table["task"] == "OS", "low"] > 0).all()
    assert found.quality["check"].tolist() == ["mpp_source"] * 6
    text = json.dumps(fitted.to_dict(), allow_nan=False)
    assert "TCGA" not in text
    again = Trust.from_dict(json.loads(text)).assess(asked, new, index(names))
    for name in ("sets", "decisions", "drift", "batch", "quality"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))


def test_another_level_gives_other_sets(fitted: Trust) -> None:
    rng = np.random.default_rng(5)
    asked = predictions("external", ["N1", "N2", "N3"], rng)
    at_90, at_80 = fitted.assess(asked).sets, fitted.at(0.8).assess(asked).sets
    assert set(at_80["level"]) == {0.8}
    liss = at_90["task"] == "LISS"
    assert ((at_90["high"] - at_90["low"])[liss] > (at_80["high"] - at_80["low"])[liss]).all()
    assert all(set(few) <= set(many) for few, many in zip(at_80["labels"], at_90["labels"], strict=True))
    with pytest.raises(DataError, match="above 0.5 and below 1"):
        fitted.at(90)


def test_a_batch_of_another_kind_is_flagged(fitted: Trust) -> None:
    rng = np.random.default_rng(2)
    names = [f"N{i}" for i in range(30)]
    asked = predictions("external", names, rng)
    assert fitted.assess(asked, slides(names, rng, 0.8)).batch["flagged"].all()
    assert not fitted.assess(asked, slides(names, rng)).batch["flagged"].any()


def test_what_is_missing_is_said(fitted: Trust) -> None:
    rng = np.random.default_rng(3)
    names = [f"P{i}" for i in range(15)]
    table = pd.concat([predictions("val", names, rng), predictions("test", names, rng)])
    few = Trust.fit(table, slides(names, rng), level=0.95, refit=True)
    assert few.drift is None
    assert any("15 patients with slides are too few" in note for note in few.notes)
    assert any("every set" in note or "this class" in note for note in few.notes)
    assert "OS: a refitted model has no bound of survival times" in few.notes
    nothing = Trust.fit(predictions("val", names, rng))
    assert nothing.conformal is None
    found = nothing.assess(predictions("external", names, rng))
    assert len(found.by_patient()) == 0
    with pytest.raises(DataError, match="this release reads 'equipoise-trust/1'"):
        Trust.from_dict({"format": "equipoise-trust/9"})
    with pytest.raises(DataError, match="missing"):
        Trust.from_dict({"format": "equipoise-trust/1"})
    assert fitted.notes == ()


def test_slides_of_a_store(tmp_path) -> None:
    """Mean features, area in mm² and tiles, of slides with features alone."""
    spec = StoreSpec("e", "0" * 16, 3, 0.5, 224)
    store = FeatureStore.create_or_open(tmp_path, spec)
    table = pd.DataFrame(
        {"slide": ["a", "b"], "path": ["a.svs", "b.svs"], "fingerprint": ["1", "2"], "mpp": np.nan}
    )
    store.lock()
    keys = store.register(table)
    features = np.arange(12, dtype=np.float16).reshape(4, 3)
    known = {"status": "ok", "n": 4, "mpp": 0.25, "mpp_source": "metadata", "width": 8000, "height": 4000}
    corners = np.arange(4, dtype=np.int32)
    store.stage(keys[0], corners, corners, features, {"slide": "a", **known, "tissue": 0.5})
    store.recover_staged(keys)
    store.record([{"key": keys[1], "status": "no_mpp", "error": "nobody says"}])
    store.commit()
    found = slide_set(table.assign(patient=["p", "q"], cohort="A"), store)
    store.close()
    assert list(found.slide) == ["a"]
    np.testing.assert_allclose(found.vectors["embedding"], [[4.5, 5.5, 6.5]])
    assert found.values["tissue_mm2"][0] == pytest.approx(0.5 * 2.0 * 1.0)
    assert found.values["tiles"].tolist() == [4]
    assert np.isnan(found.vectors["stain"]).all()


def test_the_page_of_a_patient(fitted: Trust) -> None:
    """Self-contained, research use, SYNTHETIC; answers, abstentions with reasons; markup in names is text."""
    rng = np.random.default_rng(4)
    names = ["N1", "<b>N2</b>", "N3", "N4", "N5"]
    asked = predictions("external", names, rng)
    new = slides(names, rng)
    new.vectors["embedding"][1] += 9
    found = fitted.assess(asked, new, index(names))
    rows = [
        ("MSI", "binary", "probability", "MSIH", 0.91, 0.4, "MSIH"),
        ("LISS", "regression", "value", "", 1.234, np.nan, ""),
        ("OS", "survival", "risk", "", 0.4, 0.1, "high risk"),
        ("OS", "survival", "survival", "365 days", 0.62, np.nan, ""),
    ]
    columns = ["task", "kind", "output", "class", "score", "threshold", "call"]
    table = pd.DataFrame(rows, columns=columns)
    model = ModelRecord("demo", fitted, synthetic=True, meta={"SHA-256": "abc"})
    page = patient_page(PatientRecord("<b>N2</b>", table, found), model)
    assert "<b>N2" not in page
    assert "say nothing about patients" in page
    assert "Research use only" in page
    markup = re.sub(r"(?s)<(style|script).*?</\1>", "", page)
    assert not re.findall(r"""(?:src|href)=["']?https?:""", markup)
    words = re.sub(r"<[^>]+>", " ", markup)
    for text in (
        "no answer",
        "365 days",
        "threshold 0.400",
        "at least",
        "standard deviations",
        "1.234",
    ):
        assert text in words, text
    other = patient_page(PatientRecord("N1", table, found), ModelRecord("demo", None, synthetic=False))
    assert "Nothing was exported with this model" in other
    assert "say nothing about patients" not in other

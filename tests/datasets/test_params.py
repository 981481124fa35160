"""Specs of tables, cohorts, sites and splits: short forms, refusals, light imports, JSON schema."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from equipoise.datasets.params import CohortSource, Columns, SiteSource, TableSource, label_key


def test_a_plain_path_is_a_table() -> None:
    assert TableSource.model_validate("clini.csv") == TableSource(path="clini.csv")
    cohort = CohortSource.model_validate({"name": "A", "role": "develop", "clinical": "clini.csv"})
    assert cohort.clinical.path == "clini.csv"
    assert cohort.site.scheme == "cohort"


@pytest.mark.parametrize(
    ("short", "scheme"),
    [
        ("cohort", "cohort"),
        ("tss", "tss"),
        ({"column": "SITE"}, "column"),
        ({"institution": "t.csv"}, "institution"),
    ],
)
def test_short_forms_of_sites(short: object, scheme: str) -> None:
    assert SiteSource.model_validate(short).scheme == scheme


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("institution", "needs its institution"),
        ({"scheme": "tss", "column": "SITE"}, "does not belong to site scheme 'tss'"),
        ({"column": "A", "institution": "t.csv"}, "leave one of the two out"),
    ],
)
def test_sites_that_contradict_themselves(given: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SiteSource.model_validate(given)


def test_where_takes_numbers_and_single_values_but_no_booleans() -> None:
    source = TableSource.model_validate({"path": "a.csv", "where": {"study": "COAD", "year": [2019, 2020.0]}})
    assert source.where == {"study": ["COAD"], "year": ["2019", "2020"]}
    with pytest.raises(ValidationError, match="put yes, no, on, off, true and false in quotes"):
        TableSource.model_validate({"path": "a.csv", "where": {"smoker": [True]}})


@pytest.mark.parametrize(
    ("text", "key"),
    [("1.0", "1"), ("1", "1"), ("01", "01"), ("-2.00", "-2"), ("1.5", "1.5"), (" MSS ", "MSS")],
)
def test_label_key(text: str, key: str) -> None:
    assert label_key(text) == key


def test_unknown_keys_are_errors() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        CohortSource.model_validate({"name": "A", "role": "develop", "clini": "a.csv", "clinical": "a.csv"})


def test_a_folder_of_slides_needs_a_table_of_slides() -> None:
    with pytest.raises(ValidationError, match="needs 'slides'"):
        CohortSource.model_validate({"name": "A", "role": "develop", "clinical": "a.csv", "slides_dir": "s"})


def test_a_cohorts_columns_win_over_the_studys() -> None:
    merged = Columns(patient="ID").or_else(Columns(patient="PATIENT", file="FILE"))
    assert (merged.patient, merged.file, merged.mpp) == ("ID", "FILE", None)


def test_every_field_is_described_in_the_schema() -> None:
    schema = CohortSource.model_json_schema()
    for model in [schema, *schema["$defs"].values()]:
        for name, field in model.get("properties", {}).items():
            assert field.get("description") or "$ref" in field, (model["title"], name)
    assert {"type": "string"} in schema["properties"]["clinical"]["oneOf"][0]["anyOf"]


def test_specs_and_readers_import_nothing_heavy() -> None:
    modules = [
        "equipoise.datasets.params",
        "equipoise.datasets.tables.tasks",
        "equipoise.datasets.tables.targets",
        "equipoise.datasets.tables.reading",
        "equipoise.datasets.cohorts.sites",
        "equipoise.datasets.cohorts.cohort",
        "equipoise.datasets.cohorts.splits",
        "equipoise.datasets.cohorts.leakage",
        "equipoise.datasets.cohorts.cases",
        "equipoise.datasets.entries",
    ]
    code = (
        "import sys, json, importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "heavy = ('pandas', 'torch', 'ray', 'scipy', 'pyarrow', 'sklearn', 'openpyxl', 'openslide')\n"
        "print(json.dumps([m for m in heavy if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []

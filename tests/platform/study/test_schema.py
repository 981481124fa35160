"""The study file: all problems are reported at once, with line, valid values and the nearest one."""

import json
from pathlib import Path
from textwrap import dedent

import pytest

from equipoise.platform.errors import StudyError
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.reading import parse_overrides
from equipoise.platform.study.schema import fixed_settings, json_schema, smoke_overrides

GOOD = """\
version: 1
name: crc
cohorts:
  - {name: A, role: develop, clinical: a.csv, slides: s.csv}
tasks:
  - {name: MSI, type: binary, column: MSI, positive: MSI-H, main: true}
splits:
  scheme: kfold
  folds: 3
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(dedent(text))
    return file


def problems(tmp_path: Path, text: str, **overrides: object) -> str:
    with pytest.raises(StudyError) as caught:
        load_study(write(tmp_path, text), {k.replace("__", "."): v for k, v in overrides.items()})
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_good_study_resolves_and_reads_back(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, GOOD))
    assert study.main_task.name == "MSI"
    assert study.base == tmp_path.resolve()
    again = write(tmp_path, json.dumps(study.resolved()))  # JSON is YAML
    assert load_study(again).resolved() == study.resolved()


def test_all_problems_at_once_with_line_and_nearest(tmp_path: Path) -> None:
    text = (
        GOOD.replace("scheme: kfold", "scheme: site_perserved")
        .replace("main: true", "main: 7")
        .replace("role: develop", "role: develope")
        + "trainning: {epochs: 3}\n"
    )
    message = problems(tmp_path, text)
    assert "4 problems" in message
    assert (
        "line 4, cohorts.0.role: 'develope' is not one of develop, external. Did you mean 'develop'?"
        in message
    )
    assert "line 8, splits.scheme: 'site_perserved' is not one of" in message
    assert "Did you mean 'site_preserved'?" in message
    assert "line 6, tasks.0.main: needs true or false, not 7" in message
    assert "line 10, trainning: unknown key. Did you mean 'training'?" in message
    assert (
        message.index("line 4") < message.index("line 6") < message.index("line 8") < message.index("line 10")
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("type: binary", "type: binery", "Did you mean 'binary'?"),
        ("name: crc\n", "", "name: is required"),
        ("column: MSI,", "colum: MSI,", "colum: unknown key. Did you mean 'column'?"),
        ("version: 1", "version: 2", "version:"),
        ("role: develop", "role: external", "none has role develop"),
        (
            "name: crc\n",
            "name: Krebs Süd\n",
            "'Krebs Süd' has to begin with one of A-Z, a-z, 0-9; the rest may be",
        ),
        (
            "version: 1",
            "version: 1\nevaluation: {bootstrap: many}",
            "bootstrap: needs a whole number, not 'many'",
        ),
        ("version: 1", "version: 1\nmodel: joint", "model: needs keys of its own (key: value"),
        (
            "version: 1",
            "version: 1\nreport:",
            "report: needs keys of its own (key: value, indented below it), not nothing",
        ),
    ],
)
def test_single_problems(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in problems(tmp_path, GOOD.replace(old, new))


def test_unknown_registry_names_suggest_the_nearest(tmp_path: Path) -> None:
    message = problems(tmp_path, GOOD + "features: {encoder: handcraftd}\n")
    assert "line 10, features" in message
    assert "'handcraftd'" in message
    assert "Did you mean 'handcrafted'?" in message
    assert "Did you mean 'joint'?" in problems(tmp_path, GOOD + "model: {kind: jiont}\n")
    assert "Did you mean 'equal'?" in problems(tmp_path, GOOD + "balancing: {weighting: equall}\n")


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    message = problems(tmp_path, GOOD + "name: other\n")
    assert "line 10, name: written twice (first on line 2)" in message


def test_repeated_names_and_two_mains(tmp_path: Path) -> None:
    second = "  - {name: MSI, type: regression, column: X, main: true}\nsplits:"
    assert "'MSI' is used 2 times" in problems(tmp_path, GOOD.replace("splits:", second))


def test_broken_yaml_names_line_and_column(tmp_path: Path) -> None:
    message = problems(tmp_path, "version: 1\nname: [unclosed\ncohorts: 3\n")
    assert "line 3, column" in message
    assert "not valid YAML" in message


def test_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="equipoise init"):
        load_study(tmp_path / "absent.yaml")


def test_yaml_tags_construct_nothing(tmp_path: Path) -> None:
    message = problems(tmp_path, "version: 1\nname: !!python/object/apply:os.getcwd []\n")
    assert "is not allowed" in message


def test_overrides_are_typed_and_named_in_errors(tmp_path: Path) -> None:
    overrides = parse_overrides(
        ["splits.folds=4", "training.lr=1e-5", "cohorts.0.name=B", "report.title=a=b"]
    )
    study = load_study(write(tmp_path, GOOD), overrides)
    assert (study.splits.folds, study.training.lr, study.cohorts[0].name) == (4, 1e-5, "B")
    assert "--set evaluation.bootstrap:" in problems(tmp_path, GOOD, evaluation__bootstrap=-1)
    assert "--set splits.folds:" in problems(tmp_path, GOOD, splits__folds=1)
    with pytest.raises(StudyError, match="not an item"):
        load_study(write(tmp_path, GOOD), {"cohorts.3.name": "B"})
    with pytest.raises(StudyError, match="key=value"):
        parse_overrides(["splits.folds"])


def test_the_settled_part_leaves_out_what_changes_no_prediction(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, GOOD))
    same = load_study(write(tmp_path, GOOD), {"evaluation.bootstrap": 60})
    other = load_study(write(tmp_path, GOOD), {"training.lr": 0.5})
    fixed = [fixed_settings(s.resolved()) for s in (study, same, other)]
    assert fixed[0] == fixed[1] != fixed[2]


def test_smoke_is_a_set_of_overrides_that_fits_every_scheme(tmp_path: Path) -> None:
    for scheme in ("{scheme: kfold, folds: 5}", "{scheme: leave_one_cohort_out}", "{scheme: monte_carlo}"):
        text = GOOD.split("splits:")[0] + f"splits: {scheme}\n"
        study = load_study(write(tmp_path, text))
        small = load_study(write(tmp_path, text), smoke_overrides(study))
        assert small.patients_per_site == 4
        assert small.training.epochs == 1


def test_schema_describes_every_section() -> None:
    properties = json_schema()["properties"]
    assert {"cohorts", "tasks", "features", "model", "balancing", "training", "splits"} <= set(properties)
    assert all("description" in value for value in properties.values())


def test_splits_have_the_options_of_their_scheme(tmp_path: Path) -> None:
    assert "splits.folds: unknown key" in problems(
        tmp_path, GOOD, splits={"scheme": "monte_carlo", "folds": 3}
    )
    assert "splits.test_fraction: unknown key" in problems(tmp_path, GOOD, splits={"test_fraction": 0.5})
    # As written out in full by earlier versions: options of other schemes at their defaults.
    full = {"scheme": "monte_carlo", "folds": 5, "repeats": 3, "inner_val": 0.15, "test_fraction": 0.2}
    study = load_study(write(tmp_path, GOOD), {"splits": full})
    assert study.splits.model_dump() == {
        "scheme": "monte_carlo",
        "repeats": 3,
        "inner_val": 0.15,
        "test_fraction": 0.2,
    }
    assert fixed_settings({"splits": full}) == {"splits": study.splits.model_dump()}


def test_an_unknown_site_scheme_is_a_problem(tmp_path: Path) -> None:
    said = problems(tmp_path, GOOD, cohorts__0__site="tsss")
    assert "cohorts: site of A: unknown sites entry 'tsss'" in said
    assert "Did you mean 'tss'" in said
    said = problems(tmp_path, GOOD, cohorts__0__site={"scheme": "tss", "params": {"x": 1}})
    assert "Extra inputs are not permitted" in said


def test_an_unknown_section_after_set_names_the_option(tmp_path: Path) -> None:
    said = problems(tmp_path, GOOD, trainig__lr=0.1)
    assert "--set trainig.lr, trainig: unknown key. Did you mean 'training'?" in said


def test_parameters_of_a_federation_are_named_where_they_stand(tmp_path: Path) -> None:
    federation = "federation:\n  server_aggregation: trimmed_mean\n  server_aggregation_params: {}\n"
    first = len(GOOD.splitlines()) + 1

    def said(old: str, new: str) -> str:
        assert old in federation
        return problems(tmp_path, GOOD + federation.replace(old, new))

    place = f"line {first + 2}, federation.server_aggregation_params.trim"
    assert f"{place}s: unknown parameter of trimmed_mean; known: trim. Did you mean 'trim'?" in said(
        "{}", "{trims: 0.1}"
    )
    assert f"{place}: should be less than 0.5 (given: 7)" in said("{}", "{trim: 7}")
    assert (
        f"line {first + 1}, federation.server_aggregation: unknown server_aggregations entry 'tmean'"
        in said("trimmed_mean", "tmean")
    )
    assert "--set federation.strategy_params.mu: unknown parameter of fedavg" in problems(
        tmp_path, GOOD + federation, federation__strategy_params__mu=1
    )


def test_a_slide_encoder_inside_the_model_gets_the_tiles_that_it_was_made_for(tmp_path: Path) -> None:
    model = {"kind": "modaltune"}
    load_study(write(tmp_path, GOOD), {"model": model})
    text = problems(tmp_path, GOOD, model=model | {"slide_encoder": "gigapath_slide"})
    assert "model.slide_encoder: slide encoder 'gigapath_slide' was made for features of gigapath" in text
    text = problems(tmp_path, GOOD, model=model, features__slide_encoder="mean_std")
    assert "model.slide_encoder: random_transformer reads tiles" in text
    text = problems(tmp_path, GOOD, model=model | {"bottleneck": 50})
    assert "bottleneck 50 is not divisible by attention_heads 12" in text
    tables = GOOD.replace("slides: s.csv", "omics: {rna: r.csv}")  # nobody encodes slides there
    load_study(write(tmp_path, tables), {"model": model | {"slide_encoder": "gigapath_slide"}})


def test_heads_on_text_name_tasks_and_an_encoder_that_exist(tmp_path: Path) -> None:
    text = {"tasks": ["MSIH"], "labels": {"grade": {"field": "stage"}}}
    found = problems(tmp_path, GOOD, training__text=text)
    assert "'MSIH' is no task. Did you mean 'MSI'?" in found
    assert "training.text.labels: 'grade' is no task" in found
    assert "Did you mean 'hashed'" in problems(tmp_path, GOOD, training__text={"encoder": "hashd"})
    study = load_study(write(tmp_path, GOOD), {"training.text": {}})
    assert study.training.text is not None
    assert study.training.text.takes("MSI", "binary")
    # A model that would fail only when it is built, after all slides were extracted, is refused when the study is read.
    found = problems(tmp_path, GOOD, training__text={}, model={"kind": "gptomic"})
    assert "training.text: 'gptomic' builds heads of its own, which cannot be on text: take abmil," in found


def test_survival_on_text_is_refused_in_a_federation_and_by_a_solver(tmp_path: Path) -> None:
    survival = (
        "  - {name: OS, type: survival, time: {column: t, unit: days}, event: {column: e, event_value: 1}}\n"
    )
    file = GOOD.replace("splits:", survival + "splits:")
    found = problems(tmp_path, file, training__text={"tasks": ["OS"]}, federation={"strategy": "fedavg"})
    assert "needs a Kaplan-Meier curve" in found
    found = problems(tmp_path, file, training__text={"tasks": ["OS"]}, model={"kind": "elastic_net"})
    assert "fits direct heads only" in found

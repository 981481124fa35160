"""Runs of models that read tables: without slides and extraction, every exclusion a row; and together with slides."""

import shutil
from pathlib import Path
from textwrap import dedent

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.atomic_io import read_json
from equipoise.platform.errors import DataError, DataWarning, StudyError
from equipoise.platform.evaluation.baselines import read_baselines
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.run import steps
from equipoise.platform.run.folder import STEPS, RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.schema import Study
from equipoise.platform.training.build import recipe_of
from equipoise.platform.training.crossval import load_fold

STUDY = """\
version: 1
name: tables
cohorts:
  - {name: A, role: develop, clinical: a.csv, omics: {rna: a_rna.csv, mutation: a_mut.csv}}
  - {name: E, role: external, clinical: e.csv, omics: {rna: e_rna.csv}}
tasks:
  - {name: RESPONSE, type: binary, column: RESPONSE, positive: "yes", negative: "no"}
  - {name: SCORE, type: regression, column: SCORE}
tables:
  clinical:
    - {column: AGE, type: number}
    - {column: SEX, type: category}
  rna: {genes: 20}
model: {kind: clinical}
training: {epochs: 15, patience: 15, lr: 0.1, batch: 16, schedule: constant}
splits: {folds: 2}
evaluation: {bootstrap: 50}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 patients of which age and one gene decide the response; 30 of an external cohort that lacks a gene."""
    base = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    for name, n in (("a", 80), ("e", 30)):
        age, sex = rng.normal(60, 10, n).round(), rng.choice(["f", "m"], n)
        burden = (age - 60) / 10
        clinical = pd.DataFrame(
            {
                "PATIENT": [f"{name}{i}" for i in range(n)],
                "AGE": age.astype(int).astype(str),
                "SEX": sex,
                "RESPONSE": np.where(burden + rng.normal(0, 0.3, n) > 0, "yes", "no"),
                "SCORE": (burden + rng.normal(0, 0.3, n)).round(3),
            }
        )
        rates = np.exp(rng.normal(4, 1, 40))
        means = np.repeat(rates[None], n, axis=0)
        means[:, 0] = 200 * np.exp(burden)
        rna = pd.DataFrame(rng.poisson(means), columns=[f"G{i}" for i in range(40)])
        mutation = pd.DataFrame(rng.integers(0, 2, (n, 4)), columns=["TP53", "KRAS", "APC", "BRAF"])
        if name == "a":
            clinical.loc[0, ["AGE", "SEX"]] = ""
        else:
            clinical.loc[0, "SEX"] = "diverse"
            rna = rna.drop(columns=["G7"])
        clinical.to_csv(base / f"{name}.csv", index=False)
        for table, frame in (("rna", rna), ("mut", mutation)):
            frame.insert(0, "PATIENT", clinical["PATIENT"])
            frame.iloc[(2 if table == "rna" else 0) :].to_csv(base / f"{name}_{table}.csv", index=False)
    (base / "study.yaml").write_text(STUDY)
    return base


def study_of(root: Path, **overrides: object) -> Study:
    return load_study(root / "study.yaml", {k.replace("__", "."): v for k, v in overrides.items()})


def run_steps(study: Study, out: Path, *names: str) -> steps.RunResult:
    return steps.run_steps(study, RunFolder.open(study, str(out), "auto"), names or STEPS)


def auroc(run: Path, role: str) -> float:
    from sklearn.metrics import roc_auc_score

    table = read_predictions(run / "evaluation" / "predictions.parquet")
    rows = table[(table["role"] == role) & (table["task"] == "RESPONSE")]
    return float(roc_auc_score(rows["target"], rows["score"]))


def test_covariates_alone(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="equipoise"):
        run_steps(study_of(root), tmp_path / "run")
    assert "extract: nothing to do, model clinical reads tables only" in caplog.text
    run = tmp_path / "run"
    assert RunFolder(run).to_do() == []
    assert not (root / "features").exists()
    exclusions = pd.read_csv(run / "manifest" / "exclusions.csv")
    assert exclusions[["patient", "stage"]].to_numpy().tolist() == [["a0", "has table"]]
    assert "no row in what the model reads (clinical)" in exclusions["reason"][0]
    predictions = read_predictions(run / "evaluation" / "predictions.parquet")
    assert set(predictions[predictions["role"] == "test"]["patient"]) == {f"a{i}" for i in range(1, 80)}
    assert auroc(run, "test") > 0.85
    assert auroc(run, "external") > 0.85
    assert "its model uses tables" in (run / "report.html").read_text(encoding="utf-8")
    tables = read_json(run / "folds" / "0-0" / "targets.json")["tables"]
    assert list(tables) == ["clinical"]
    assert tables["clinical"]["categories"][0]["values"] == ["f", "m"]  # not the external cohort's
    assert load_fold(run / "folds" / "0-0").targets.shape.omics == {"clinical": 3}


def test_omics_alone_with_genes_that_an_external_cohort_lacks(root: Path, tmp_path: Path) -> None:
    study = study_of(
        root, model={"kind": "omics", "dim": 16}, training__lr=0.01, training__monitor="val_loss"
    )
    run_steps(study, tmp_path / "run")
    run = tmp_path / "run"
    notes = "\n".join(read_json(run / "manifest" / "notes.json"))
    assert "cohort E lacks 1 of 40 rna columns, e.g. G7; they are filled with training medians" in notes
    assert "mutation" in read_json(run / "folds" / "0-0" / "targets.json")["omics"]
    rna = load_fold(run / "folds" / "0-0").targets.tables["rna"]
    assert rna.scale == "log_cpm"
    assert len(rna.names) == 20
    patients = set(read_predictions(run / "folds" / "0-0" / "preds.parquet")["patient"])
    assert patients <= {f"a{i}" for i in range(80)}  # two have mutations only, and stay
    assert auroc(run, "test") > 0.75
    assert auroc(run, "external") > 0.75


def test_elastic_net_of_all_tables(root: Path, tmp_path: Path) -> None:
    run_steps(study_of(root, model={"kind": "elastic_net"}), tmp_path / "run")
    run = tmp_path / "run"
    fold = load_fold(run / "folds" / "0-0")
    assert fold.config["exact"]
    assert list(fold.targets.shape.omics) == ["clinical", "mutation", "rna"]
    assert auroc(run, "test") > 0.85
    assert auroc(run, "external") > 0.85
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "a solver found its optimum" in page
    baselines = read_baselines(run / "evaluation" / "baselines.csv")
    of_age = baselines[(baselines["predictor"] == "covariate AGE") & (baselines["role"] == "test")]
    assert of_age[of_age["task"] == "RESPONSE"]["value"].item() > 0.85  # age decides the response
    assert "Lead of the model" in page
    assert "The strongest baseline, " in page
    assert "Fits that may not have converged" not in page


def test_a_fit_that_stopped_too_early_is_in_the_report(root: Path, tmp_path: Path) -> None:
    study = study_of(root, balancing="uncertainty", training={"epochs": 2}, evaluation__baselines=False)
    run_steps(study, tmp_path / "run")
    assert not (tmp_path / "run" / "evaluation" / "baselines.csv").exists()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Fits that may not have converged" in page
    assert "the last of 2 epochs was the best" in page
    assert "Distance from the optimum" in page


def test_a_solver_has_no_steps_to_balance_or_to_federate(root: Path) -> None:
    with pytest.raises(
        StudyError, match="'elastic_net' is fitted by a solver, task by task: write balancing: equal"
    ):
        study_of(root, model={"kind": "elastic_net"}, balancing="uncertainty+pcgrad")
    with pytest.raises(StudyError, match="federate clinical"):
        study_of(root, model={"kind": "elastic_net"}, federation={})


def test_one_modality_of_several(root: Path) -> None:
    model = {"kind": "omics", "modalities": ["mutation"]}
    with pytest.raises(DataError, match="nobody is left in cohort E"):
        steps.read_cohorts(study_of(root, model=model))
    cohorts = steps.read_cohorts(study_of(root, model=model, cohorts__1__omics={"mutation": "e_mut.csv"}))
    assert list(cohorts.omics) == ["mutation"]
    assert len(cohorts.patients) == 110


def declared(**rna: object) -> dict[str, object]:
    return {
        "model": {"kind": "omics", "modalities": ["rna"], "dim": 4},
        "cohorts__0__omics": {"rna": {"path": "a_rna.csv", **rna}},
    }


def test_a_declared_kind_of_rna_decides_how_it_is_transformed(root: Path) -> None:
    study = study_of(root, **declared(kind="counts"))
    cohorts = steps.read_cohorts(study)
    assert recipe_of(study).tables.rna.transform == "log_cpm"
    assert cohorts.expression["A"].declared
    assert "rna of A, E: counts (declared for A; E: they look like it)" in cohorts.notes
    study = study_of(root, **declared(kind="tpm"))
    assert recipe_of(study).tables.rna.transform == "log1p"
    with pytest.warns(DataWarning, match=r"cohort 'A', a_rna\.csv: .*are they counts"):
        steps.read_cohorts(study)
    # Without a declaration the values decide, patient by patient of a fold; the notes say what they look like.
    study = study_of(root, **declared(kind="auto"))
    assert recipe_of(study).tables.rna.transform == "auto"
    assert (
        "rna of A, E: the values look like counts; declare them with kind: counts"
        in steps.read_cohorts(study).notes
    )
    study = study_of(root, **declared(kind="counts"), tables__rna={"transform": "none"})
    assert recipe_of(study).tables.rna.transform == "none"


def test_a_declared_kind_that_the_values_contradict_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="no value is negative") as error:
        steps.read_cohorts(study_of(root, **declared(kind="zscore")))
    assert error.value.where == "cohort 'A', a_rna.csv"
    with pytest.raises(DataError, match=r"values are above 50.* \(a\d+, G\d+\)"):
        steps.read_cohorts(study_of(root, **declared(kind="log", log_base=2)))
    with pytest.raises(StudyError, match="log_cpm is for counts .* write transform: auto, log or none"):
        study_of(root, **declared(kind="zscore"), tables__rna={"transform": "log_cpm"})
    with pytest.raises(StudyError, match="'kind' describes RNA: leave it out of mutation"):
        study_of(root, cohorts__0__omics={"mutation": {"path": "a_mut.csv", "kind": "counts"}})


def test_genes_that_cohorts_name_differently_are_aligned(root: Path, tmp_path: Path) -> None:
    base = tmp_path / "study"
    shutil.copytree(root, base)
    original = pd.read_csv(base / "e_rna.csv")
    external = original.rename(columns={"G3": "OLD3"}).assign(G5B=1)
    external.to_csv(base / "e_rna.csv", index=False)
    genes = [f"G{i}" for i in range(40)]
    earlier = {"G3": "OLD3", "G5": "G5A|G5B"}
    table = pd.DataFrame({"symbol": genes, "prev_symbol": [earlier.get(gene, "") for gene in genes]})
    table.to_csv(base / "genes.csv", index=False)
    omics = {"rna": {"path": "e_rna.csv", "gene_table": "genes.csv", "kind": "counts"}}
    study = study_of(base, **declared(kind="counts"), cohorts__1__omics=omics)
    run_steps(study, tmp_path / "run", "validate")
    cohorts = steps.read_cohorts(study)
    rows = cohorts.omics["rna"].loc[external["PATIENT"]]
    np.testing.assert_array_equal(rows["G3"], original["G3"])
    np.testing.assert_array_equal(rows["G5"], external["G5"] + 1)  # two columns of one gene: counts add up
    listed = pd.read_csv(tmp_path / "run" / "manifest" / "gene_names.csv")
    assert listed.to_numpy().tolist() == [
        ["E", "rna", "OLD3", "G3", "previous symbol", "renamed"],
        ["E", "rna", "G5B", "G5", "previous symbol", "merged by sum"],
        ["E", "rna", "G5", "G5", "same gene", "merged by sum"],
    ]
    assert any(note.startswith("cohort E: rna genes by genes.csv: 1 renamed") for note in cohorts.notes)


def test_gene_sets_of_a_study(root: Path, tmp_path: Path) -> None:
    base = tmp_path / "study"
    shutil.copytree(root, base)
    (base / "sets.gmt").write_text("burden\t\tG0\tG1\nrest\t\tG2\tG3\tELSEWHERE\nfew\t\tG9\tOTHER\n")
    settings = {"tables__rna": {"gene_sets": {"file": "sets.gmt", "use": "scores", "min_genes": 2}}}
    study = study_of(base, **declared(), **settings)
    run_steps(study, tmp_path / "run", "validate", "extract", "train")
    notes = read_json(tmp_path / "run" / "manifest" / "notes.json")
    assert any(
        note.startswith("gene sets: 2 sets; 5 of their 7 genes are in the rna table of 40") for note in notes
    )
    fold = load_fold(tmp_path / "run" / "folds" / "0-0")
    assert fold.targets.tables["rna"].names == ("burden", "rest")
    assert fold.targets.shape.omics == {"rna": 2}
    with pytest.raises(DataError, match="no such file"):
        recipe_of(study_of(base, **declared(), tables__rna={"gene_sets": "set.gmt"}))


def test_clipping_is_fitted_on_training_patients(root: Path, tmp_path: Path) -> None:
    base = tmp_path / "study"
    shutil.copytree(root, base)
    settings = {"tables__rna": {"transform": "none"}, "training__epochs": 1, "training__min_epochs": 1}
    fences = []
    rna = pd.read_csv(base / "a_rna.csv").astype({"G3": float})
    row = 10
    for outlier in (None, 1e6):
        if outlier:
            rna.loc[row, "G3"] = outlier
        rna.to_csv(base / "a_rna.csv", index=False)
        run = tmp_path / f"run{outlier}"
        run_steps(study_of(base, **declared(), **settings), run, "validate", "extract", "train")
        of_folds = {name: load_fold(run / "folds" / name) for name in ("0-0", "0-1")}
        fences.append({name: fold.targets.tables["rna"] for name, fold in of_folds.items()})
    plain, with_outlier = fences
    patient = rna.loc[row, "PATIENT"]
    tested = {
        name: patient
        in set(read_predictions(run / "folds" / name / "preds.parquet").query("role == 'test'")["patient"])
        for name in plain
    }
    assert sorted(tested.values()) == [False, True]
    for name, is_test in tested.items():
        assert (plain[name] == with_outlier[name]) == is_test
        gene = with_outlier[name].names.index("G3")
        values = rna.drop(columns="PATIENT").loc[row].to_numpy(np.float32)
        columns = tuple(rna.columns[1:])
        assert with_outlier[name].apply(values, columns)[gene] < 10  # 1e6 would be thousands of spreads


def test_changed_tables_change_what_was_learned_from(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    before = steps.RunContext(study_of(copy), RunFolder(copy / "run")).inputs.content_keys
    table = pd.read_csv(copy / "a.csv", dtype=str, keep_default_na=False)
    table.loc[5, "AGE"] = "99"
    table.to_csv(copy / "a.csv", index=False)
    after = steps.RunContext(study_of(copy), RunFolder(copy / "run")).inputs.content_keys
    assert {patient for patient in before if before[patient] != after[patient]} == {"a5"}


def test_an_external_cohort_with_other_genes_warns(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    table = pd.read_csv(copy / "e_rna.csv").iloc[:, :21]
    table.to_csv(copy / "e_rna.csv", index=False)
    with pytest.warns(DataWarning, match="cohort E lacks 20 of 40 rna columns"):
        steps.read_cohorts(study_of(copy, model={"kind": "omics"}))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "column: AGE",
            "column: SCORE",
            "line 9, tables: covariate 'SCORE' is what task 'SCORE' predicts; a model that reads its own answer",
        ),
        ("type: category", "type: categori", "Did you mean 'category'?"),
        ("column: SEX", "columm: SEX", "Did you mean 'column'?"),
        (
            "rna: {genes: 20}",
            "rna: {transform: logs}",
            "line 13, tables.rna.transform: 'logs' is not one of auto",
        ),
        ("column: SEX", "column: AGE", "column 'AGE' stands 2 times under clinical"),
        ("{genes: 20}", "{gene: 20}", "gene: unknown key. Did you mean 'genes'?"),
    ],
)
def test_tables_that_are_refused(root: Path, tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace(old, new, 1))
    with pytest.raises(StudyError) as caught:
        load_study(tmp_path / "study.yaml")
    assert said in str(caught.value)


def test_survival_columns_are_no_covariates(tmp_path: Path) -> None:
    tasks = """
      - name: OS
        type: survival
        time: {column: DAYS, unit: days}
        event: {column: AGE, event_value: 1}
    """
    text = STUDY.split("tasks:")[0] + "tasks:" + dedent(tasks) + "tables:" + STUDY.split("tables:")[1]
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(StudyError, match="covariate 'AGE' is what task 'OS' predicts"):
        load_study(tmp_path / "study.yaml")


def test_a_model_needs_something_to_read(root: Path) -> None:
    with pytest.raises(StudyError, match=r"model: 'clinical' reads covariates, and the study names none"):
        study_of(root, tables={})
    with pytest.raises(StudyError, match=r"'omics' reads rna, cnv, mutation, and no develop cohort has any"):
        study_of(root, model={"kind": "omics"}, cohorts__0__omics={})
    assert study_of(root, model={"kind": "concat"}).reads_slides is False


def test_slides_and_tables_together(tiny: Path, tmp_path: Path) -> None:
    """A patient without a slide is read by the tables; one without RNA by the slide and the covariates."""
    root = tmp_path / "cohorts"
    shutil.copytree(tiny, root)
    listing = root / "syn-crc-a" / "slides.csv"
    slides = pd.read_csv(listing, dtype=str, keep_default_na=False)
    bare = slides["PATIENT"].iloc[0]
    slides[slides["PATIENT"] != bare].to_csv(listing, index=False)
    overrides = {
        "cohorts.1.role": "external",
        "model": {"kind": "concat", "dim": 16, "modality_dropout": 0.2},
        "tables": {"clinical": [{"column": "AGE", "type": "number"}, {"column": "SEX", "type": "category"}]},
        "training.epochs": 2,
        "evaluation.bootstrap": 50,
    }
    run_steps(load_study(root / "study.yaml", overrides), root / "run")
    predictions = read_predictions(root / "run" / "evaluation" / "predictions.parquet")
    tested = predictions[predictions["role"] == "test"]
    clinical = pd.read_csv(root / "syn-crc-a" / "clinical.csv", dtype=str)
    assert bare in set(tested["patient"])
    assert set(tested["patient"]) == set(clinical["PATIENT"])
    assert np.isfinite(predictions["score"]).all()
    fold = load_fold(root / "run" / "folds" / "0-0")
    assert list(fold.model.encoders) == ["wsi", "clinical", "cnv", "mutation", "rna"]  # type: ignore[union-attr, arg-type]
    assert fold.targets.shape.features > 0

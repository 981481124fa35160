"""Whatever ``init`` writes validates: generated tables of every kind, and public tables as they are."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.errors import DataError
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import check_draft, load_study
from equipoise.platform.run.steps import run_steps
from equipoise.platform.study.draft import biomarker, survival
from equipoise.platform.study.schema import Study, smoke_overrides
from equipoise.platform.study.table_scan import Hints

KINDS = {"biomarker": biomarker, "survival": survival}


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def drafted(tables: Path, folder: Path, kind: str, hints: dict[str, Any] | None = None) -> Path:
    """The file that ``equipoise init`` writes."""
    file = folder / f"{kind}.yaml"
    template: Callable[..., str] = KINDS[kind]
    file.write_text(template(tables, file, Hints(**(hints or {}), check=check_draft)), encoding="utf-8")
    return file


def validated(file: Path) -> Study:
    """What ``equipoise validate`` does, with its run folder."""
    study = load_study(file)
    run = RunFolder.open(study, str(file.parent / f"run-{file.stem}"), "never")
    run_steps(study, run, ["validate"])
    assert (run.manifest / "splits.json").exists()
    return study


# ---- generated tables ------------------------------------------------------------------------------------------


def generated(rng: np.random.Generator) -> pd.DataFrame:
    """A table such as somebody may have: odd sizes, keys, labels, gaps, repeated and contradictory rows."""
    n = int(rng.integers(1, 90))
    key = str(
        rng.choice(["PATIENT", "Patient ID", "case_id", "pid", "bcr_patient_barcode", "key", "subject"])
    )
    barcode = rng.random() < 0.5
    ids = [
        f"TCGA-{rng.integers(1, 9):02}-A{i:03}" if barcode else f"{rng.choice(['p', '0', ''])}{i}"
        for i in range(n)
    ]
    columns: dict[str, Any] = {"": range(n)} if rng.random() < 0.3 else {}
    columns[key] = ids
    for j in range(int(rng.integers(0, 9))):
        columns |= one_column(rng, n, j)
    frame = pd.DataFrame(
        {name: pd.Series(list(map(str, values)), dtype=object) for name, values in columns.items()}
    )
    gaps = rng.random(frame.shape) < rng.choice([0, 0.1, 0.6])
    gaps[:, list(frame.columns).index(key)] = False
    frame = frame.mask(gaps, str(rng.choice(["", "NA", "Unknown", "[Not Available]"])))
    if rng.random() < 0.3:
        frame = pd.concat(
            [frame, frame.sample(frac=0.5, random_state=int(rng.integers(99)))], ignore_index=True
        )
    if rng.random() < 0.2:
        frame.iloc[: len(frame) // 3] = (
            frame.iloc[: len(frame) // 3].sample(frac=1, random_state=0).to_numpy()
        )
    return frame


def one_column(rng: np.random.Generator, n: int, j: int) -> dict[str, Any]:
    """A column or a pair of them, of a random kind."""
    two = np.array(
        [["MSS", "MSI-H"], ["0", "1"], ["no", "yes"], ["a b", "a: {b}"], ["01", "1"], ["Low", "low"]], object
    )
    kind = int(rng.integers(0, 9))
    if kind == 0:
        return {
            f"label {j}": two[rng.integers(len(two))][
                (rng.random(n) < rng.choice([0.02, 0.3, 0.5])).astype(int)
            ]
        }
    if kind == 1:
        return {f"class.{j}": rng.choice(["A", "B", "C", "n.d.", "x, y"], n)}
    if kind == 2:
        return {f"score{j}": np.round(rng.normal(size=n) * 10 ** rng.integers(0, 9), 3)}
    if kind == 3:
        return {f"digits_{j}": rng.integers(10**8, 10**11, n)}
    if kind == 4:
        time = np.round(rng.exponential(rng.choice([3, 30, 900]), n) - rng.choice([0, 1]), 2)
        names = [
            ("OS.time", "OS"),
            ("survival_months", "censorship"),
            ("DFS_MONTHS", "DFS_STATUS"),
            ("T", "E"),
        ]
        first, second = names[rng.integers(len(names))]
        status = [["0", "1"], ["0:ALIVE", "1:DEAD"], ["Alive", "Dead"], ["0", "0"]][rng.integers(4)]
        return {first: time, second: np.array(status, object)[rng.integers(0, 2, n)]}
    if kind == 5:
        return {
            str(rng.choice(["AGE", "age_at_index"])): rng.integers(0, 95, n),
            "Sex": rng.choice(["F", "M"], n),
        }
    if kind == 6:
        return {str(rng.choice(["train", "fold", "slide_id", "Sample ID"])): rng.integers(0, 2 + n, n)}
    if kind == 7:
        genes = rng.normal(size=(n, 7)).round(3)
        return {f"G{i}_{s}": genes[:, i] for i in range(7) for s in ("rnaseq", "cnv")}
    return {f"text{j}": [f"remark {i}; of, {j}" for i in range(n)]}


def written(frame: pd.DataFrame, folder: Path, rng: np.random.Generator) -> Path:
    """The table in one of the formats that are read."""
    kind = int(rng.integers(0, 5))
    if kind == 0:
        path = folder / "t.json.gz"
        path.write_bytes(gzip.compress(json.dumps({"data": frame.to_dict("records")}).encode()))
        return path
    if kind == 1:
        frame.to_parquet(path := folder / "t.parquet", index=False)
        return path
    if kind == 2:
        (path := folder / "t.csv").write_text(
            "sep=;\n" + frame.to_csv(sep=";", index=False), encoding="utf-16"
        )
        return path
    frame.to_csv(
        path := folder / ("t.tsv.gz" if kind == 3 else "t.csv"), sep="\t" if kind == 3 else ",", index=False
    )
    return path


@pytest.mark.parametrize("seed", [0, *map(slow, range(1, 9))])
def test_whatever_is_written_validates(tmp_path: Path, seed: int) -> None:
    """A draft is refused with a reason or it validates; most of those with enough patients and a label are written."""
    rng = np.random.default_rng(seed)
    count = 0
    for i in range(12):
        folder = tmp_path / str(i)
        folder.mkdir()
        path = written(generated(rng), folder, rng)
        for kind in KINDS:
            try:
                file = drafted(path, folder, kind)
            except DataError:  # refused with a reason, and nothing is written
                continue
            validated(file)
            count += 1
    assert count >= 4


# ---- public tables ---------------------------------------------------------------------------------------------

CANCERS = ["brca", "gbmlgg", "kirc", "kirp", "luad", "lusc"]
CPTAC = ["brain_cptac_2020", "brca_cptac_2020", "coad_cptac_2019", "gbm_cptac_2021", "luad_cptac_2020"]
CPTAC += ["lusc_cptac_2021", "paad_cptac_2021", "ucec_cptac_2020"]
MODALTUNE = [
    f"{part}_{cancer}" for part in ("train", "val", "test") for cancer in ("brca", "gbmlgg", "nsclc", "rcc")
]


def public(name: str, data: Path) -> tuple[Path, dict[str, Any]]:
    """A public table and what the command line says about it."""
    if name in CANCERS:
        return data / "tcga" / "porpoise" / f"tcga_{name}_all_clean.csv.zip", {}
    if name in MODALTUNE:
        return data / "tcga" / "modaltune" / f"{name}_cls_feat.json.gz", {}
    if name in CPTAC:
        return data / "labels" / "CPTAC_CLINI_Data.xlsx", {"where": {"Study ID": name}}
    return data / {
        "liu": "labels/liu.xlsx",
        "fed": "fed/fed_tcga_brca",
        "fed_brca": "fed/fed_tcga_brca/brca.csv",
    }[name], {}


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "kind", "main", "model"),
    [
        ("val_gbmlgg", "biomarker", "primary_class", "clinical"),
        ("fed_brca", "survival", "OS", "clinical"),
        ("kirp", "survival", "OS", "elastic_net"),
        slow("fed_brca", "biomarker", "ajcc_pathologic_m_MX", "clinical"),
        slow("gbmlgg", "biomarker", "oncotree_code", "elastic_net"),
        slow("liu", "survival", "OS", "clinical"),
        slow("coad_cptac_2019", "survival", "OS", "clinical"),
    ],
)
def test_public_tables(
    shared_data: Path, tmp_path: Path, name: str, kind: str, main: str, model: str
) -> None:
    path, hints = public(name, shared_data)
    study = validated(drafted(path, tmp_path, kind, hints))
    assert (study.main_task.name, study.model.kind) == (main, model)
    if name == "kirp":  # 1 is censored here
        event = study.main_task.event  # type: ignore[union-attr]
        assert (event.column, event.event_value, event.censored_value) == ("censorship", ["0"], ["1"])
        assert set(study.cohorts[0].omics) == {"rna", "mutation"}


@pytest.mark.real
@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("tcga/hypal/hypal_kirc.csv", "it holds predictions of a model (mean_hazard, std_hazard)"),
        ("tcga/mcat/gbmlgg_published_val_predictions.csv.gz", "it holds predictions of a model (risk)"),
        ("tcga/porpoise/signatures.csv", "it holds gene sets"),
        ("tcga/survpath/hallmarks_signatures.csv", "it holds gene sets"),
        ("tcga/survpath/combine_signatures.csv", "it holds gene sets"),
        ("tcga/porpoise/splits_5foldcv/tcga_kirc/splits_0.csv", "it holds published folds"),
        ("fed/fed_tcga_brca/train_test_split.csv", "it holds published folds"),
        ("fed/fed_tcga_brca/centers.csv", "it names the institutions of site codes"),
        ("labels/tcga-institution-sites.csv", "it names the institutions of site codes"),
        ("fed/tcga_tss/tissueSourceSite.tsv", "it names the institutions of site codes"),
        ("fed/tcga_tss/diseaseStudy.tsv", "no patient column is recognised"),
        ("fed/flamby_published/pub_fed_tcga_brca.csv", "no patient column is recognised"),
    ],
)
def test_other_public_files_are_named(shared_data: Path, tmp_path: Path, path: str, what: str) -> None:
    with pytest.raises(DataError) as error:
        drafted(shared_data / path, tmp_path, "biomarker")
    assert f"was not used: {what}" in str(error.value)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", [*CANCERS, *MODALTUNE, "liu", "fed", *CPTAC])
def test_public_tables_run_unedited(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Every table gives a study that validates and whose subsample runs to the end."""
    path, hints = public(name, shared_data)
    file = drafted(path, tmp_path, "biomarker", hints)
    study = validated(file)
    smoke = load_study(file, smoke_overrides(study))
    run = RunFolder.open(smoke, str(tmp_path / "smoke"), "never")
    run_steps(smoke, run, ["validate", "extract", "train", "evaluate", "report"])
    predictions = pd.read_parquet(run.evaluation / "predictions.parquet")
    assert predictions["score"].notna().all()

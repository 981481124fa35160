"""Published folds: every known form of file gives the same parts, and nobody is moved, lost or doubled in silence."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.cohorts.leakage import split_warnings
from equipoise.datasets.cohorts.published_folds import fold_files, from_files, read_folds, unlisted_patients
from equipoise.datasets.cohorts.splits import Fold, SplitScheme, make_folds, splits_from_json, splits_to_json
from equipoise.datasets.errors import DataError
from equipoise.datasets.params import FileSplitParams
from equipoise.datasets.tables.tasks import BinaryTask

MSI = BinaryTask(name="MSI", column="MSI", positive=["1"], main=True)
N, K = 40, 4
PATIENTS = [f"TCGA-{i % 7:02}-A{i:03}" for i in range(N)]
#: Fold in which each patient is tested.
TESTED = np.arange(N) % K


def people(patients: list[str] = PATIENTS, external: int = 3) -> pd.DataFrame:
    n = len(patients)
    frame = pd.DataFrame({"patient": patients, "cohort": "A", "role": "develop", "site": "A"})
    frame["MSI"] = (np.arange(n) % 3 == 0).astype(float)
    more = frame.iloc[:external].assign(patient=[f"X{i}" for i in range(external)], role="external")
    return pd.concat([frame, more], ignore_index=True)


def ragged(path: Path, **parts: list[str]) -> None:
    pd.DataFrame({part: pd.Series(names, dtype=object) for part, names in parts.items()}).to_csv(path)


def slide(patient: str) -> str:
    return f"{patient}-01Z-00-DX1.ABC"


def porpoise(folder: Path) -> Any:
    for k in range(K):
        test = [p for p, f in zip(PATIENTS, TESTED, strict=True) if f == k]
        ragged(folder / f"splits_{k}.csv", train=[p for p in PATIENTS if p not in test], val=test)
    return "splits_*.csv"


def clam(folder: Path) -> Any:
    """Slides; the same folds as names and as booleans, and a table of counts."""
    for k in range(K):
        test = [slide(p) for p, f in zip(PATIENTS, TESTED, strict=True) if f == k]
        train = [slide(p) for p in PATIENTS if slide(p) not in test]
        ragged(folder / f"splits_{k}.csv", train=train, val=[], test=test)
        table = pd.DataFrame({"train": True, "val": False, "test": False}, index=train)
        table = pd.concat([table, pd.DataFrame({"train": False, "val": False, "test": True}, index=test)])
        table.to_csv(folder / f"splits_{k}_bool.csv")
        (folder / f"splits_{k}_descriptor.csv").write_text(",train,val,test\nMSI,3,1,2\n")
    return "."


def clam_booleans(folder: Path) -> Any:
    clam(folder)
    return [f"splits_{k}_bool.csv" for k in range(K)]


def stamp(folder: Path) -> Any:
    splits = [
        {
            "train_patients": [p for p, f in zip(PATIENTS, TESTED, strict=True) if f != k],
            "test_patients": [p for p, f in zip(PATIENTS, TESTED, strict=True) if f == k],
        }
        for k in range(K)
    ]
    (folder / "splits.json").write_text(json.dumps({"splits": splits}))
    return "splits.json"


def plain(folder: Path) -> Any:
    pd.DataFrame({"PATIENT": PATIENTS, "fold": TESTED}).to_csv(folder / "folds.csv", index=False)
    return "folds.csv"


def with_role(folder: Path) -> Any:
    rows = [
        (p, k, "test" if f == k else "train") for k in range(K) for p, f in zip(PATIENTS, TESTED, strict=True)
    ]
    pd.DataFrame(rows, columns=["pid", "fold", "role"]).to_csv(folder / "folds.tsv", sep="\t", index=False)
    return "folds.tsv"


def folds_of(folder: Path, files: Any, table: pd.DataFrame | None = None, **options: Any) -> list[Fold]:
    scheme = SplitScheme(from_files, FileSplitParams(files=files, **options), folder)
    return make_folds(people() if table is None else table, scheme, [MSI], 7)


@pytest.mark.parametrize("write", [porpoise, clam, clam_booleans, stamp, plain, with_role])
def test_every_form_gives_the_published_test_parts(tmp_path: Path, write: Any) -> None:
    folds = folds_of(tmp_path, write(tmp_path))
    assert [(f.repeat, f.index) for f in folds] == [(0, k) for k in range(K)]
    for k, fold in enumerate(folds):
        assert set(fold.test) == {p for p, f in zip(PATIENTS, TESTED, strict=True) if f == k}
        assert {*fold.train, *fold.val} == set(PATIENTS) - set(fold.test)
        assert len(fold.val) == round(0.15 * 30)  # drawn from training, with both classes
        assert fold.unknown == ()
        assert str(k) in fold.title


def test_a_validation_part_of_the_file_is_kept(tmp_path: Path) -> None:
    parts = {"train": PATIENTS[:20], "val": PATIENTS[20:30], "test": PATIENTS[30:]}
    ragged(tmp_path / "splits_0.csv", **parts)
    (fold,) = folds_of(tmp_path, "splits_0.csv")
    assert {part: list(getattr(fold, part)) for part in parts} == {k: sorted(v) for k, v in parts.items()}
    assert fold.title == "splits_0"


def test_a_column_of_roles_is_one_fold(tmp_path: Path) -> None:
    """FLamby's file: the column called fold says train or test."""
    rows = [(p, "test" if i < 10 else "train", f"train_{i % 3}") for i, p in enumerate(PATIENTS)]
    pd.DataFrame(rows, columns=["pid", "fold", "fold2"]).to_csv(
        tmp_path / "train_test_split.csv", index=False
    )
    (fold,) = folds_of(tmp_path, "train_test_split.csv")
    assert (set(fold.test), fold.title) == (set(PATIENTS[:10]), "train_test_split")


def test_test_parts_that_overlap_are_repeats(tmp_path: Path) -> None:
    """CLAM draws its splits independently: a patient may be tested in several."""
    for k in range(3):
        ragged(tmp_path / f"splits_{k}.csv", train=PATIENTS[10:], val=PATIENTS[:5], test=PATIENTS[5:10])
    folds = folds_of(tmp_path, "splits_*.csv")
    assert [fold.name for fold in folds] == ["0-0", "1-0", "2-0"]


def test_ten_folds_keep_the_order_of_their_numbers(tmp_path: Path) -> None:
    for k in range(12):
        ragged(tmp_path / f"splits_{k}.csv", train=PATIENTS[:30], test=PATIENTS[30:])
    names = [path.name for path in fold_files(["splits_*.csv"], tmp_path)]
    assert names == [f"splits_{k}.csv" for k in range(12)]


def test_unknown_names_are_listed_and_unlisted_patients_have_a_reason(tmp_path: Path) -> None:
    ragged(tmp_path / "splits_0.csv", train=[*PATIENTS[:25], "GONE-1"], val=[*PATIENTS[25:38], "GONE-2"])
    (fold,) = folds_of(tmp_path, "splits_0.csv")
    assert set(fold.unknown) == {"GONE-1", "GONE-2"}
    (remark,) = [r for r in split_warnings([fold], people(), [MSI]) if "names" in r]
    assert "2 names of the published folds" in remark
    assert "GONE-1" in remark
    params = FileSplitParams(files=["splits_0.csv"])
    slides = pd.DataFrame({"slide": [], "patient": []})
    assert unlisted_patients(params, tmp_path, people(), slides) == dict.fromkeys(
        PATIENTS[38:], "in no fold of splits.files"
    )
    written = json.loads(json.dumps(splits_to_json([fold])))
    assert splits_from_json(written) == [fold]


def test_names_of_slides_without_barcodes_need_the_slides_table(tmp_path: Path) -> None:
    patients = [f"p{i}" for i in range(N)]
    slides = pd.DataFrame({"slide": [f"scan{i}" for i in range(N)], "patient": patients})
    ragged(
        tmp_path / "s.csv", train=[f"scan{i}.svs" for i in range(30)], test=[f"scan{i}" for i in range(30, N)]
    )
    scheme = SplitScheme(from_files, FileSplitParams(files=["s.csv"]), tmp_path)
    (fold,) = make_folds(people(patients), scheme, [MSI], 0, slides)
    assert set(fold.test) == set(patients[30:])
    with pytest.raises(DataError, match="no fold of the files has patients of the study"):
        make_folds(people(patients), scheme, [MSI], 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train,val\na,b\nb,c\n", r"1 name\(s\) stand in both train and test: b"),
        ("train,val\na,\nb,\n", "the test part is empty"),
        ("gene,value\na,1\n", "neither the columns train, val and test nor patient and fold"),
        ("PATIENT,fold,role\na,0,tset\n", "'tset' in column 'role' is no part of a fold"),
    ],
)
def test_files_that_cannot_be_meant(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "f.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_folds(FileSplitParams(files=["f.csv"]), tmp_path)


def test_slides_of_one_patient_in_two_parts_leak(tmp_path: Path) -> None:
    ragged(tmp_path / "s.csv", train=[f"{p}-01Z" for p in PATIENTS], test=[f"{PATIENTS[0]}-02Z"])
    with pytest.raises(DataError, match=f"slides of patient {PATIENTS[0]} stand in both train and test"):
        folds_of(tmp_path, "s.csv")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file there holds folds"):
        fold_files(["splits_*.csv"], tmp_path)
    with pytest.raises(DataError, match="no such file"):
        fold_files(["splits_0.csv"], tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("cancer", ["brca", "gbmlgg", "kirc", "kirp", "luad", "lusc"])
def test_folds_of_porpoise(shared_data: Path, cancer: str) -> None:
    """The published test parts exactly: what the column ``val`` of each file names, and nobody else."""
    folder = shared_data / "tcga" / "porpoise" / "splits_5foldcv" / f"tcga_{cancer}"
    published = []
    for k in range(5):
        with (folder / f"splits_{k}.csv").open() as file:
            rows = list(csv.DictReader(file))
        published.append({part: {row[part] for row in rows} - {""} for part in ("train", "val")})
    everybody = sorted(set().union(*(fold["train"] | fold["val"] for fold in published)))
    folds = folds_of(folder, "splits_*.csv", people(everybody))
    assert [fold.title for fold in folds] == [f"splits_{k}" for k in range(5)]
    for fold, theirs in zip(folds, published, strict=True):
        assert set(fold.test) == theirs["val"]
        assert {*fold.train, *fold.val} == theirs["train"]
        assert not fold.unknown

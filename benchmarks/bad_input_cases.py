"""Cases of :mod:`benchmarks.bad_input`, drawn from seeded generators, one generator a kind.

A case says what must happen: ``refused`` (a documented exit code other than 0 and 5), ``remarked`` (refused, or the
answer speaks of it), ``answered`` (anything but an error of ours: the input may be legitimate).
"""

import csv
import gzip
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

Work = list[str] | Callable[[], object]
Build = Callable[[Path, Path], Work]

CONFIG = ["-c", "study.yaml"]
SLIDES = [f"s{i:02d}" for i in range(24)]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Parameters
    ----------
    kind, name
        Generator and what is wrong.
    build
        Writes the input into the case's folder (first argument; the second is the template) and returns what to run.
    must
        ``refused``, ``remarked`` (by a text that contains ``word``) or ``answered``.
    """

    kind: str
    name: str
    build: Build
    must: Literal["refused", "remarked", "answered"] = "refused"
    word: str = ""

    def as_expected(self, code: int, said: str) -> bool:
        """Whether this answer is what had to happen."""
        if self.must == "answered":
            return True
        if self.must == "remarked" and self.word and self.word.lower() in said.lower():
            return True
        return code in (1, 2, 3, 4, 5)


def cases(kind: str) -> Iterator[Case]:
    """All cases of a kind, the same in every process."""
    for name, build, *must in GENERATORS[kind]():
        yield Case(kind, name, build, *must)


STUDY: dict[str, Any] = {
    "version": 1,
    "name": "t",
    "synthetic": True,
    "cohorts": [
        {
            "name": "A",
            "role": "develop",
            "clinical": "clini.csv",
            "slides": "slides.csv",
            "slides_dir": "h5",
            "omics": {"rna": "rna.csv"},
        }
    ],
    "tasks": [
        {
            "name": "MSI",
            "type": "binary",
            "column": "MSI",
            "positive": "MSI-H",
            "negative": ["MSS"],
            "main": True,
        },
        {"name": "SCORE", "type": "regression", "column": "SCORE"},
        {
            "name": "OS",
            "type": "survival",
            "time": {"column": "OS", "unit": "days"},
            "event": {"column": "DEAD", "event_value": 1, "censored_value": 0},
        },
    ],
    "features": {"imported": {"path": "h5"}, "max_fail": 0.5},
    "model": {"kind": "mean_pool"},
    "training": {"epochs": 1},
    "splits": {"scheme": "kfold", "folds": 2},
    "evaluation": {"bootstrap": 50, "baselines": {"enabled": False}},
    "resources": {"cpus": 1},
}


def write_study(folder: Path, study: dict[str, Any]) -> None:
    """``study.yaml`` of a case."""
    text = yaml.safe_dump(study, sort_keys=False, allow_unicode=True)
    (folder / "study.yaml").write_text(text, encoding="utf-8")


def clinical_rows() -> list[dict[str, str]]:
    """24 patients with all labels."""
    draw = random.Random(0)
    return [
        {
            "PATIENT": f"P{i:03d}",
            "MSI": "MSI-H" if i % 3 == 0 else "MSS",
            "AGE": str(40 + draw.randint(0, 40)),
            "SCORE": f"{draw.random() * 5:.3f}",
            "OS": str(draw.randint(10, 2000)),
            "DEAD": str(i % 2),
        }
        for i in range(24)
    ]


def slide_rows() -> list[dict[str, str]]:
    """A slide of every patient."""
    return [
        {"PATIENT": f"P{i:03d}", "FILENAME": f"{name}.svs", "MPP": "0.5"} for i, name in enumerate(SLIDES)
    ]


def write_rows(path: Path, rows: list[dict[str, str]], delimiter: str = ",", encoding: str = "utf-8") -> None:
    """A CSV file."""
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_h5(path: Path, seed: int, n: int = 12, dim: int = 8) -> None:
    """Features of a slide in STAMP's layout."""
    import h5py

    draw = np.random.default_rng([seed, n])
    with h5py.File(path, "w") as file:
        file["feats"] = draw.normal(size=(n, dim)).astype(np.float32)
        file["coords"] = np.stack([np.arange(n) * 128.0, np.zeros(n)], axis=1)
        file.attrs["extractor"] = "uni"
        file.attrs["unit"] = "um"
        file.attrs["tile_size_um"] = 128.0
        file.attrs["tile_size_px"] = 256


def make_template(folder: Path) -> None:
    """A study with its store and its run folder, all good."""
    write_rows(folder / "clini.csv", clinical_rows())
    write_rows(folder / "slides.csv", slide_rows())
    genes = [f"G{j}" for j in range(12)]
    draw = np.random.default_rng(1)
    rows = [{"PATIENT": f"P{i:03d}"} | {gene: f"{draw.normal():.4f}" for gene in genes} for i in range(24)]
    write_rows(folder / "rna.csv", rows)
    (folder / "h5").mkdir()
    for i, name in enumerate(SLIDES):
        write_h5(folder / "h5" / f"{name}.h5", i)
    write_study(folder, STUDY)
    command = [sys.executable, "-m", "equipoise.jobs.run", *CONFIG]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the template does not run:\n{done.stderr[-3000:]}")


def tables_of(folder: Path, template: Path) -> None:
    """Copy tables and features of the template, not its store and its run."""
    for name in ("clini.csv", "slides.csv", "rna.csv", "study.yaml"):
        shutil.copyfile(template / name, folder / name)
    (folder / "h5").symlink_to(template / "h5")


def everything_of(folder: Path, template: Path) -> None:
    """Copy the template."""
    shutil.copytree(template, folder, dirs_exist_ok=True)


# ---- study keys ---------------------------------------------------------------------------------------------


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Path and value of everything in a study that is no mapping or list, and of empty ones."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    else:
        yield path, value


def replaced(study: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a study with another value at a path."""
    if not path:
        return value
    copy = list(study) if isinstance(study, list) else dict(study)
    copy[path[0]] = replaced(study[path[0]], path[1:], value)
    return copy


def full_study() -> dict[str, Any]:
    """The study with all sections and every default written out."""
    from equipoise.platform.study.schema import Study

    sections = {
        "search": {"trials": 2, "searcher": "random"},
        "federation": {"sites": {"scheme": "iid", "clients": 3}},
    }
    return Study.model_validate(STUDY | sections).model_dump(mode="json")


def study_keys() -> Iterator[tuple]:
    """Every setting with values of a wrong type or size; unknown keys everywhere."""
    study = full_study()

    def check(changed: dict[str, Any]) -> Build:
        def build(folder: Path, template: Path) -> Work:
            tables_of(folder, template)
            write_study(folder, changed)
            return ["validate", *CONFIG, "--config-only"]

        return build

    for path, value in leaves(study):
        name = ".".join(map(str, path))
        wrong: dict[str, Any] = {"a mapping": {"a": {"b": 1}}}
        if isinstance(value, bool):
            wrong |= {"text": "maybe", "a number": 7}
        elif isinstance(value, int | float):
            wrong |= {"nan": float("nan"), "infinite": float("inf"), "huge": 1e300, "text": "many"}
        for what, bad in wrong.items():
            free = path[-1] in ("event_value", "censored_value") or value is None or value == {}
            yield f"{name}: {what}", check(replaced(study, path, bad)), "answered" if free else "refused"
    sections = {path[:-1] for path, _ in leaves(study) if path and isinstance(path[-1], str)}
    for path in sorted(sections, key=str):
        inner: Any = study
        for key in path:
            inner = inner[key]
        name = ".".join(map(str, path)) or "(top)"
        free = path and path[-1] in ("rename", "where", "omics")
        yield (
            f"{name}: unknown key",
            check(replaced(study, path, inner | {"no_such_key": 1})),
            "answered" if free else "refused",
        )


# ---- YAML ---------------------------------------------------------------------------------------------------


def yaml_files() -> Iterator[tuple]:
    """Files that are no study, or that mean to harm the reader."""
    good = yaml.safe_dump(STUDY, sort_keys=False)
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    texts: dict[str, str | bytes] = {
        "empty": "",
        "a number": "42",
        "a list": "- 1\n- 2\n",
        "text": "hello",
        "null": "null\n",
        "aliases": bomb + good,
        "an alias in itself": "a: &a [*a]\n" + good,
        "merge in itself": "a: &a {<<: *a}\n" + good,
        "deep lists": "x: " + "[" * 5000 + "]" * 5000 + "\n" + good,
        "deep mappings": "x: " + "{a: " * 3000 + "1" + "}" * 3000,
        "deep blocks": "".join("  " * i + "k:\n" for i in range(2000)),
        "a tag of Python": good + "x: !!python/object/apply:os.system ['true']\n",
        "a tag of Python, name": good + "x: !!python/name:os.system\n",
        "a binary tag": good.replace("name: t", "name: !!binary AAAA"),
        "a set": good.replace("name: t", "name: !!set {a, b}"),
        "a date": good.replace("name: t", "name: 2024-01-01"),
        "a wrong date": good.replace("name: t", "name: 2024-99-99"),
        "a wrong time": good.replace("version: 1", "version: 2024-01-01T99:99:99Z"),
        "a long number": good.replace("version: 1", "version: " + "9" * 6000),
        "a long number in a list": good + "x: [" + "1" * 5000 + "]\n",
        "sixty": good.replace("version: 1", "version: 1:30"),
        "octal": good.replace("version: 1", "version: 0o17"),
        "twice the same key": good + "name: other\n",
        "twice the same section": good + "training: {epochs: 2}\n",
        "tabs": good.replace("  ", "\t"),
        "an open bracket": good + "x: [1, 2\n",
        "an open quote": good + "x: 'abc\n",
        "an unknown alias": good + "x: *nothing\n",
        "two documents": good + "---\n" + good,
        "a directive": "%YAML 9.9\n---\n" + good,
        "null bytes": good.encode() + b"\x00\x00",
        "random bytes": bytes(random.Random(1).randrange(256) for _ in range(4000)),
        "UTF-16 without a mark": good.encode("utf-16-le"),
        "Latin-1": good.replace("name: t", "name: Universität").encode("latin-1"),
        "a zip": b"PK\x03\x04" + bytes(100),
        "a key that is a list": good + "? [a, b]\n: 1\n",
        "a key that is null": good + "~: 1\n",
        "a key that is a number": good + "7: 1\n",
        "a key that is true": good + "yes: 1\n",
        "control characters": good + 'x: "\\x07"\n',
        "a very long line": good + "x: " + "a" * 3_000_000 + "\n",
        "a very long key": good + "k" * 200_000 + ": 1\n",
        "many keys": good + "".join(f"k{i}: 1\n" for i in range(20_000)),
        "version 2": good.replace("version: 1", "version: 2"),
        "version as text": good.replace("version: 1", "version: one"),
        "version true": good.replace("version: 1", "version: true"),
        "a name with a path": good.replace("name: t", "name: ../../t"),
        "a name with a slash": good.replace("name: t", "name: /abc"),
        "an empty name": good.replace("name: t", "name: ''"),
        "a name of dots": good.replace("name: t", "name: '..'"),
        "a name of 400 characters": good.replace("name: t", "name: " + "n" * 400),
        "a name with a line end": good.replace("name: t", 'name: "a\\nb"'),
        "a name with a null": good.replace("name: t", 'name: "a\\0b"'),
    }
    for name, text in texts.items():

        def build(folder: Path, template: Path, text: str | bytes = text) -> Work:
            tables_of(folder, template)
            (folder / "study.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
            return ["validate", *CONFIG]

        yield (
            name,
            build,
            "answered"
            if name in ("a name with a line end", "sixty", "a date", "a wrong date")
            else "refused",
        )
    settings = {
        "no sign": "training.epochs",
        "an empty key": "=3",
        "an empty part": "training..epochs=3",
        "an unknown key": "training.epoch=3",
        "aliases": "training.epochs=&a [*a]",
        "a tag": "name=!!python/name:os.system",
        "deep": "name=" + "[" * 4000,
        "a long number": "training.epochs=" + "9" * 6000,
        "nan": "training.lr=.nan",
        "infinity": "training.lr=.inf",
        "text": "training.lr=fast",
        "a date": "training.lr=2024-99-99",
        "a position": "cohorts.7.role=develop",
        "a negative position": "cohorts.-1.role=external",
        "into a number": "version.a.b=1",
        "into a list": "cohorts.name=B",
        "an open bracket": "training.lr=[1",
        "null": "training.epochs=null",
        "a mapping": "training.lr={a: 1}",
        "the version": "version=3",
        "a null byte": "name=a\x00b",
        "a list for a name": "name=[a]",
    }
    for name, setting in settings.items():

        def set_(folder: Path, template: Path, setting: str = setting) -> Work:
            tables_of(folder, template)
            return ["validate", *CONFIG, "--set", setting, "--config-only"]

        yield f"--set: {name}", set_


# ---- tables -------------------------------------------------------------------------------------------------


def damaged(data: bytes, how: str, draw: random.Random) -> bytes:
    """A file that was cut, emptied, or had bytes changed."""
    if how == "cut":
        return data[: draw.randrange(1, max(2, len(data) - 1))]
    if how == "empty":
        return b""
    if how == "noise":
        return bytes(draw.randrange(256) for _ in range(len(data)))
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 9)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def tables() -> Iterator[tuple]:
    """Clinical, slides and omics tables: forms, damage, and contents that cannot be meant."""
    rows, slides = clinical_rows(), slide_rows()

    def with_clinical(
        write: Callable[[Path], None], name: str = "clini.csv", sheet: str | None = None
    ) -> Build:
        def build(folder: Path, template: Path) -> Work:
            tables_of(folder, template)
            (folder / "clini.csv").unlink()
            write(folder / name)
            clinical = name if sheet is None else {"path": name, "sheet": sheet}
            write_study(folder, replaced(STUDY, ("cohorts", 0, "clinical"), clinical))
            return ["validate", *CONFIG]

        return build

    text = "PATIENT,MSI,AGE,SCORE,OS,DEAD\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    forms: dict[str, bytes] = {
        "empty": b"",
        "a line end": b"\n",
        "only a header": text.splitlines()[0].encode(),
        "null bytes": text.encode().replace(b"MSS", b"M\x00S"),
        "no patient column": text.replace("PATIENT", "WHO").encode(),
        "an open quote": text.replace("MSS", '"MSS', 1).encode(),
        "twice the patient column": text.replace("AGE", "PATIENT").encode(),
        "binary": bytes(range(256)) * 20,
        "only line ends": b"\n" * 500,
        "only commas": b",,,,,\n" * 30,
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
        "HTML": b"<html><body>404</body></html>",
        "JSON": b'{"a": [1, 2]}',
        "one column": "\n".join(["PATIENT", *(r["PATIENT"] for r in rows)]).encode(),
        "no labels": text.replace("MSI,", "MSX,").encode(),
        "one patient": "\n".join(text.splitlines()[:2]).encode(),
        "UTF-32": text.encode("utf-32"),
        "a mark alone": b"\xef\xbb\xbf",
        "a gzip ending": gzip.compress(text.encode())[:40],
    }
    for name, data in forms.items():
        yield f"clinical: {name}", with_clinical(lambda path, data=data: path.write_bytes(data) and None)
    more: dict[str, tuple[bytes, str]] = {
        "ragged rows": (text.replace("\nP003,", "\nP003,x,y,z,").encode(), ""),
        "short rows": (text.replace("P004,MSS,", "P004\n,").encode(), ""),
        "patients twice": (
            (text + text.splitlines()[3].replace("MSS", "MSI-H").replace("MSI-H", "MSS", 0) + "\n").encode(),
            "",
        ),
        "labels nobody asked for": (text.replace("MSS", "unsure", 4).encode(), "unsure"),
        "infinite scores": (text.replace(rows[4]["SCORE"], "inf").encode(), "SCORE"),
        "huge scores": (text.replace(rows[4]["SCORE"], "1e400").encode(), "SCORE"),
        "negative times": (text.replace(f",{rows[5]['OS']},", ",-5,").encode(), "OS"),
        "times of no number": (text.replace(f",{rows[5]['OS']},", ",n.d.,").encode(), "OS"),
        "keys NA": (text.replace("P005", "NA").replace("P006", "NA").encode(), "NA"),
        "keys of spaces": (text.replace("P005", "   ").encode(), "key"),
        "Windows line ends": (text.replace("\n", "\r\n").encode(), ""),
        "Latin-1": (text.replace("MSS", "MSÜ", 1).encode("latin-1"), ""),
        "UTF-16": (text.encode("utf-16"), ""),
        "semicolons": (text.replace(",", ";").encode(), ""),
        "old Mac line ends": (text.replace("\n", "\r").encode(), ""),
        "a million characters in a cell": (text.replace("MSS", "x" * 1_000_000, 1).encode(), "labels"),
        "emoji keys": (text.replace("P007", "😀").encode(), ""),
        "a formula": (text.replace("MSS", "=cmd|' /C calc'!A0", 1).encode(), "labels"),
    }
    for name, (data, word) in more.items():
        yield (
            f"clinical: {name}",
            with_clinical(lambda path, data=data: path.write_bytes(data) and None),
            "remarked" if word else "answered",
            word,
        )
    draw = random.Random(7)
    frame_of = {"xlsx": _xlsx, "parquet": _parquet, "csv.gz": lambda rows: gzip.compress(text.encode())}
    for ending, make in frame_of.items():
        for how in ("cut", "cut", "flip", "flip", "flip", "empty", "noise"):
            seed = draw.randrange(2**31)

            def write(path: Path, make: Any = make, how: str = how, seed: int = seed) -> None:
                path.write_bytes(damaged(make(rows), how, random.Random(seed)))

            # a changed byte may leave the table as it was, or change a value that may be so
            must = "answered" if how == "flip" else "refused"
            yield f"clinical {ending}: {how} {seed}", with_clinical(write, f"clini.{ending}"), must
        yield (
            f"clinical {ending}: text in place of it",
            with_clinical(lambda p: p.write_text(text) and None, f"clini.{ending}"),
            "answered" if ending == "csv.gz" else "refused",
        )
    yield (
        "clinical xlsx: no such sheet",
        with_clinical(lambda p: p.write_bytes(_xlsx(rows)) and None, "c.xlsx", "Nowhere"),
    )
    yield "clinical xlsx: a bomb", with_clinical(_xlsx_bomb, "c.xlsx")
    yield "clinical xlsx: entities", with_clinical(_xlsx_entities, "c.xlsx")
    yield "clinical: a folder", with_clinical(Path.mkdir)
    yield "clinical: a pipe", with_clinical(lambda path: os.mkfifo(path))
    yield "clinical: a device", with_clinical(lambda path: path.symlink_to("/dev/zero"))
    yield "clinical: a link in a circle", with_clinical(lambda path: path.symlink_to(path.name))
    yield "clinical: absent", with_clinical(lambda path: None)
    yield "clinical: 100,000 columns", with_clinical(_wide), "answered"

    def wrong_cells(name: str, column: str, values: list[str], must: str, word: str) -> Iterator[tuple]:
        for value in values:
            changed = [dict(row) for row in rows]
            for i in range(0, 24, 5):
                changed[i][column] = value

            def write(path: Path, changed: list[dict[str, str]] = changed) -> None:
                write_rows(path, changed)

            yield f"{name} {value[:20]!r}", with_clinical(write), must, word

    numbers = [
        "1,5",
        "0.1.2",
        "1e999",
        "--",
        "ten",
        "1 000",
        "0x1F",
        "²",
        "½",
        "NaN?",
        "∞",
        "1_000",
        "+-3",
        "5%",
        "<0.1",
    ]
    yield from wrong_cells("score", "SCORE", numbers, "remarked", "SCORE")
    yield from wrong_cells("time", "OS", [*numbers, "-3", "0", "1e7", "2020-01-01"], "remarked", "OS")
    yield from wrong_cells("status", "DEAD", ["2", "alive", "0.5", "?", "yes", "TRUE"], "remarked", "DEAD")
    yield from wrong_cells(
        "label", "MSI", ["msi-h", "MSI-H ", "MSI\u2010H", "MSI", "0", "x", "MSS/MSI-H"], "remarked", "MSI"
    )

    def with_slides(changed: list[dict[str, str]]) -> Build:
        def build(folder: Path, template: Path) -> Work:
            tables_of(folder, template)
            write_rows(folder / "slides.csv", changed)
            return ["validate", *CONFIG]

        return build

    for column, values, must, word in (
        ("MPP", ["40", "500", "-1", "0", "nan", "inf", "half", "0,5", "1e-9", "1e9"], "remarked", "mpp"),
        (
            "FILENAME",
            [
                "",
                "NA",
                "../../etc/passwd",
                "/etc/passwd",
                "a\x00b",
                "s" * 400,
                "CON",
                "s00.svs",
                "~/x.svs",
                "s?3.svs",
            ],
            "remarked",
            "s",
        ),
        ("PATIENT", ["", "NA", "nobody", "P001 ", "p001", "1001.0"], "remarked", "p"),
    ):
        for value in values:
            one = [dict(row) for row in slides]
            for i in range(3, 24, 7):
                one[i][column] = value
            yield f"slides: {column} {value[:20]!r}", with_slides(one), must, word
    yield (
        "slides: a slide with two pixel sizes",
        with_slides([*slides, slides[0] | {"MPP": "0.25"}]),
        "remarked",
        "0.25",
    )
    yield (
        "slides: a slide of two patients",
        with_slides([*slides, slides[0] | {"PATIENT": "P005"}]),
        "remarked",
        "two",
    )
    yield "slides: no row", with_slides([{"PATIENT": "", "FILENAME": "", "MPP": ""}]), "refused", ""

    def with_rna(write: Callable[[Path], None]) -> Build:
        def build(folder: Path, template: Path) -> Work:
            tables_of(folder, template)
            write(folder / "rna.csv")
            write_study(folder, STUDY | {"model": {"kind": "omics"}})
            return ["validate", *CONFIG]

        return build

    genes = [{"PATIENT": f"P{i:03d}", "G1": f"{i}.5", "G2": "1"} for i in range(24)]
    for name, changed, must in (
        ("text", [row | {"G1": "high"} for row in genes], "refused"),
        ("infinite", [row | {"G1": "inf"} for row in genes], "refused"),
        ("other patients", [row | {"PATIENT": f"Q{i}"} for i, row in enumerate(genes)], "refused"),
        ("constant", [row | {"G1": "1"} for row in genes], "answered"),
        ("all missing", [row | {"G1": "", "G2": ""} for row in genes], "refused"),
        ("patients twice", genes + genes, "refused"),
        ("huge", [row | {"G1": "1e300"} for row in genes], "refused"),
    ):
        yield f"rna: {name}", with_rna(lambda path, changed=changed: write_rows(path, changed)), must


def _xlsx(rows: list[dict[str, str]]) -> bytes:
    import io

    import pandas as pd

    data = io.BytesIO()
    pd.DataFrame(rows).to_excel(data, index=False)
    return data.getvalue()


def _parquet(rows: list[dict[str, str]]) -> bytes:
    import io

    import pandas as pd

    data = io.BytesIO()
    pd.DataFrame(rows).to_parquet(data, index=False)
    return data.getvalue()


def _rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    """A workbook whose sheet was changed."""
    path.write_bytes(_xlsx(clinical_rows()))
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for name, data in parts.items():
            book.writestr(name, change(data) if name.endswith("sheet1.xml") else data)


def _xlsx_bomb(path: Path) -> None:
    _rewritten(path, lambda data: data.replace(b"<sheetData>", b"<sheetData>" + b" " * 600_000_000))


def _xlsx_entities(path: Path) -> None:
    entities = b'<!ENTITY a0 "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY a%d "%s">' % (i, b"&a%d;" % (i - 1) * 10) for i in range(1, 9)
    )
    head = b'<?xml version="1.0"?><!DOCTYPE x [' + entities + b"]>"
    _rewritten(path, lambda data: head + data.partition(b"?>")[2].replace(b"<v>", b"<v>&a8;", 1))


def _wide(path: Path) -> None:
    names = [f"C{i}" for i in range(100_000)]
    rows = clinical_rows()
    with path.open("w") as file:
        file.write(",".join([*rows[0], *names]) + "\n")
        for row in rows:
            file.write(",".join([*row.values(), *(["0"] * len(names))]) + "\n")


# ---- slides -------------------------------------------------------------------------------------------------


def slides() -> Iterator[tuple]:
    """Files that are no slide, damaged ones, and impossible pixel sizes; read as ``equipoise.api`` reads a slide."""

    def read(write: Callable[[Path], Path], mpp: float | None = 0.5) -> Build:
        def build(folder: Path, template: Path) -> Work:
            path = write(folder)

            def work() -> str:
                from equipoise.datasets.slides.problems import STATUSES
                from equipoise.models.encoders.handcrafted import Handcrafted
                from equipoise.platform.extraction.params import ExtractionParams
                from equipoise.platform.extraction.single_slide import extract_one_slide

                params = ExtractionParams.model_validate({"encoder": "handcrafted"})
                taken = extract_one_slide(path, Handcrafted(), params, mpp)
                if taken.status not in STATUSES or (taken.status != "ok" and not taken.error):
                    raise RuntimeError(f"status {taken.status!r} without a reason")
                if taken.status == "ok":
                    return f"ok {len(taken.features)}"
                raise ValueError(f"{taken.status}: {taken.error}")

            return work

        return build

    def tiff(**options: Any) -> bytes:
        import io

        from PIL import Image

        draw = np.random.default_rng(3)
        pixels = draw.integers(120, 230, (600, 700, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "TIFF", **options)
        return data.getvalue()

    def as_file(data: bytes, name: str = "a.tif") -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            (folder / name).write_bytes(data)
            return folder / name

        return write

    draw = random.Random(5)
    for name, data in {
        "empty": b"",
        "text": b"hello\n" * 100,
        "zeros": bytes(5000),
        "a zip": b"PK\x03\x04" + bytes(400),
        "PNG head": b"\x89PNG\r\n\x1a\n" + bytes(200),
    }.items():
        for ending in ("svs", "tif", "ndpi", "mrxs", "dcm", "scn"):
            yield f"{name} as .{ending}", read(as_file(data, f"a.{ending}"))
    for i in range(40):
        how, seed = draw.choice(["cut", "flip", "flip", "noise"]), draw.randrange(2**31)

        def broken(folder: Path, how: str = how, seed: int = seed) -> Path:
            (folder / "a.tif").write_bytes(damaged(tiff(), how, random.Random(seed)))
            return folder / "a.tif"

        yield f"a TIFF, {how} {i}", read(broken), "answered"
    for mpp in (0.0, -1.0, float("inf"), 1e-9, 1e9, 500.0):
        yield f"{mpp:g} um/px", read(as_file(tiff()), mpp)
    yield "a folder", read(lambda folder: folder)
    yield "absent", read(lambda folder: folder / "nothing.svs")
    yield "a link to nothing", read(lambda folder: _link(folder / "a.svs", "nowhere"))
    yield "a pipe", read(lambda folder: _pipe(folder / "a.svs"))


def _link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


# ---- .h5 files ----------------------------------------------------------------------------------------------


def h5_files() -> Iterator[tuple]:
    """Imported features: each damaged file is one row, the others are imported."""

    def with_file(change: Callable[[Path], None], count: int = 1) -> Build:
        def build(folder: Path, template: Path) -> Work:
            tables_of(folder, template)
            (folder / "h5").unlink()
            shutil.copytree(template / "h5", folder / "h5")
            for name in SLIDES[:count]:
                change(folder / "h5" / f"{name}.h5")
            return ["extract", *CONFIG]

        return build

    draw = random.Random(11)
    for i in range(60):
        how, seed = draw.choice(["cut", "flip", "flip", "noise", "empty"]), draw.randrange(2**31)

        def change(path: Path, how: str = how, seed: int = seed) -> None:
            path.write_bytes(damaged(path.read_bytes(), how, random.Random(seed)))

        yield f"{how} {i}", with_file(change), "answered" if how == "flip" else "remarked", "unreadable=1"

    def rewrite(**parts: Any) -> Callable[[Path], None]:
        def change(path: Path) -> None:
            import h5py

            with h5py.File(path, "a") as file:
                for name, value in parts.items():
                    if name in file:
                        del file[name]
                    if callable(value):
                        value(file)
                    elif value is not None:
                        file[name] = value

        return change

    bad: dict[str, Any] = {
        "no feats": {"feats": None},
        "no coords": {"coords": None},
        "text feats": {"feats": np.array([b"a"] * 12)},
        "one axis": {"feats": np.zeros(12, np.float32)},
        "three axes": {"feats": np.zeros((12, 2, 4), np.float32)},
        "zero columns": {"feats": np.zeros((12, 0), np.float32)},
        "other lengths": {"feats": np.zeros((7, 8), np.float32)},
        "a group": {"feats": lambda file: file.create_group("feats")},
        "NaN": {"feats": np.full((12, 8), np.nan, np.float32)},
        "infinite": {"feats": np.full((12, 8), np.inf, np.float32)},
        "too large for half precision": {"feats": np.full((12, 8), 1e6, np.float32)},
        "NaN coordinates": {"coords": np.full((12, 2), np.nan)},
        "huge coordinates": {"coords": np.full((12, 2), 2.0**40)},
        "negative coordinates": {"coords": np.full((12, 2), -5000.0)},
        "coordinates of one column": {"coords": np.zeros((12, 1))},
        "complex": {"feats": np.zeros((12, 8), np.complex64)},
        "other width": {"feats": np.zeros((12, 5), np.float32)},
        "booleans": {"feats": np.zeros((12, 8), bool)},
        "a soft link": {"feats": lambda file: file.__setitem__("feats", _soft())},
        "an external link": {"feats": lambda file: file.__setitem__("feats", _external())},
        "external storage": {
            "feats": lambda file: file.create_dataset("feats", (4, 8), "f4", external="/etc/passwd")
        },
        "a bomb": {
            "feats": lambda file: file.create_dataset(
                "feats", (2_000_000, 4096), "f4", compression="gzip", fillvalue=0
            )
        },
        "no tile": {"feats": np.zeros((0, 8), np.float32), "coords": np.zeros((0, 2))},
    }
    for name, parts in bad.items():
        word = {"no tile": "no_tissue", "other width": ""}.get(name, "unreadable=1")
        yield name, with_file(rewrite(**parts)), "remarked" if word else "answered", word
    for name, value in {
        "text": "wide",
        "zero": 0.0,
        "negative": -3.0,
        "NaN": float("nan"),
        "huge": 1e30,
        "a list": [1.0, 2.0],
    }.items():

        def attribute(path: Path, value: Any = value) -> None:
            import h5py

            with h5py.File(path, "a") as file:
                file.attrs["tile_size_um"] = value

        yield f"tile_size_um: {name}", with_file(attribute), "answered"
    for name in ("../../evil", "/evil", "a/b", "..", "x" * 400, "a\x01b", ""):

        def other(folder: Path, template: Path, name: str = name) -> Work:
            tables_of(folder, template)
            return [
                "store",
                "import",
                "h5",
                "--format",
                "stamp",
                "--out",
                "st",
                "--encoder",
                name,
                "--mpp",
                "0.5",
                "--px",
                "256",
            ]

        yield f"encoder {name[:12]!r}", other, "answered" if name == "x" * 400 else "refused", ""


def _soft() -> Any:
    import h5py

    return h5py.SoftLink("/coords")


def _external() -> Any:
    import h5py

    return h5py.ExternalLink("/etc/passwd", "/x")


# ---- stores, run folders, checkpoints -----------------------------------------------------------------------


def stores() -> Iterator[tuple]:
    """A feature store whose files are damaged, lost or exchanged."""
    draw = random.Random(13)
    commands = {
        "verify": ["store", "verify", "features"],
        "ls": ["store", "ls", "features"],
        "gc": ["store", "gc", "features"],
        "train": ["extract", *CONFIG],
    }
    patterns = {"index": "index*", "shard": "*.arrow", "spec": "spec.json"}
    for part, pattern in patterns.items():
        for how in ("cut", "flip", "empty", "noise", "absent", "a folder"):
            for name, command in commands.items():
                seed = draw.randrange(2**31)

                def build(
                    folder: Path,
                    template: Path,
                    pattern: str = pattern,
                    how: str = how,
                    seed: int = seed,
                    command: list[str] = command,
                ) -> Work:
                    everything_of(folder, template)
                    file = sorted((folder / "features").rglob(pattern))[0]
                    spoil(file, how, random.Random(seed))
                    return command

                strict = name == "verify" and not (part == "index" and how == "absent")
                yield f"{part} {how}: {name}", build, "refused" if strict else "answered"


def spoil(file: Path, how: str, draw: random.Random) -> None:
    """Damage a file, remove it, or put a folder in its place."""
    if how == "absent":
        file.unlink()
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(damaged(file.read_bytes(), how, draw))


def run_folders() -> Iterator[tuple]:
    """A run folder whose files are damaged, lost or replaced by folders."""
    draw = random.Random(17)
    files = (
        "status.json",
        "events.jsonl",
        "provenance/resolved.yaml",
        "provenance/inputs.json",
        "manifest/patients.parquet",
        "manifest/folds.parquet",
        "manifest/exclusions.csv",
        "evaluation/predictions.parquet",
        "evaluation/metrics.parquet",
    )
    commands = {
        "status": ["status", "runs/t"],
        "report": ["report", *CONFIG],
        "leaderboard": ["leaderboard", "runs/t", "runs/u"],
    }
    for name in files:
        for how in ("cut", "noise", "empty", "absent", "a folder"):
            for job, command in commands.items():
                seed = draw.randrange(2**31)

                def build(
                    folder: Path,
                    template: Path,
                    name: str = name,
                    how: str = how,
                    seed: int = seed,
                    command: list[str] = command,
                ) -> Work:
                    everything_of(folder, template)
                    if command[0] == "leaderboard":
                        shutil.copytree(folder / "runs/t", folder / "runs/u")
                    file = folder / "runs/t" / name
                    if file.exists():
                        spoil(file, how, random.Random(seed))
                    return command

                yield f"{name} {how}: {job}", build, "answered"
    for what, arguments in {
        "a file in place of the run folder": ["validate", *CONFIG, "-o", "clini.csv"],
        "a file in place of a folder above": ["validate", *CONFIG, "-o", "clini.csv/run"],
        "a folder that cannot be made": ["validate", *CONFIG, "-o", "/proc/nothing/run"],
        "an empty name": ["validate", *CONFIG, "-o", "\x00"],
        "a very long name": ["validate", *CONFIG, "-o", "n" * 5000],
        "no run folder": ["status", "h5"],
        "one run": ["leaderboard", "runs/t"],
        "twice the same run": ["leaderboard", "runs/t", "runs/t"],
        "--resume must in a new folder": ["validate", *CONFIG, "-o", "new", "--resume", "must"],
        "--resume never in a folder of others": ["validate", *CONFIG, "-o", "h5", "--resume", "never"],
        "an unknown fold": ["train", *CONFIG, "--fold", "9-9"],
        "another study in the folder": ["validate", *CONFIG, "-s", "seed=99"],
        "a study file that is a folder": ["validate", "-c", "h5"],
        "a study file that is a pipe": ["validate", "-c", "pipe"],
        "a study file that is a device": ["validate", "-c", "/dev/zero"],
        "a study over itself": ["init", "-o", "study.yaml"],
        "tables that are no folder": ["init", "--tables", "nowhere", "-o", "n.yaml"],
        "an empty folder of tables": ["init", "--tables", "none", "-o", "n.yaml"],
        "an unknown template": ["init", "--template", "x", "-o", "n.yaml"],
        "an unknown kind": ["ls", "nothing"],
    }.items():

        def other(folder: Path, template: Path, arguments: list[str] = arguments) -> Work:
            everything_of(folder, template)
            os.mkfifo(folder / "pipe")
            (folder / "none").mkdir()
            return arguments

        yield what, other


def checkpoints() -> Iterator[tuple]:
    """Weights, configuration and predictions of a fold: cut, changed, exchanged."""
    draw = random.Random(19)
    files = ("model.safetensors", "config.json", "targets.json", "preds.parquet")
    for name in files:
        for how in ("cut", "flip", "flip", "noise", "empty", "absent", "a folder"):
            seed = draw.randrange(2**31)

            def build(
                folder: Path, template: Path, name: str = name, how: str = how, seed: int = seed
            ) -> Work:
                everything_of(folder, template)
                spoil(folder / "runs/t/folds/0-1" / name, how, random.Random(seed))
                return ["evaluate", *CONFIG]

            yield (
                f"{name} {how} {seed}",
                build,
                "answered" if how == "flip" and name.endswith("json") else "refused",
            )
    for name in files:

        def exchanged(folder: Path, template: Path, name: str = name) -> Work:
            everything_of(folder, template)
            one, other = (folder / "runs/t/folds" / fold / name for fold in ("0-0", "0-1"))
            kept = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(kept)
            return ["evaluate", *CONFIG]

        same = name == "targets.json"  # two folds may have the same scales
        yield f"{name} of two folds exchanged", exchanged, "answered" if same else "refused"


# ---- messages of clients ------------------------------------------------------------------------------------


def messages() -> Iterator[tuple]:
    """Updates that no honest client sends, as bytes: each must be refused or rejected with a reason."""
    size = 40
    values: dict[str, Any] = {
        "NaN": np.full(size, np.nan, np.float32),
        "infinite": np.full(size, np.inf, np.float32),
        "one infinite": np.where(np.arange(size) == 3, np.inf, 1).astype(np.float32),
        "too long": np.ones(size + 1, np.float32),
        "too short": np.ones(size - 1, np.float32),
        "no value": np.zeros(0, np.float32),
        "double": np.ones(size),
        "integers": np.ones(size, np.int64),
        "a matrix": np.ones((size, 1), np.float32),
        "huge": np.full(size, 3e38, np.float32),
        "half": np.ones(size, np.float16),
        "masked": np.ones(size, np.uint64),
        "zero": np.zeros(size, np.float32),
    }
    fields: dict[str, Any] = {f"delta: {name}": {"delta": value} for name, value in values.items()}
    fields |= {
        f"{field}: {name}": {field: value}
        for field, bad in {
            "schema_hash": {"other": "x", "nothing": None, "a number": 3},
            "round": {"earlier": 0, "later": 9, "negative": -1, "text": "one", "true": True},
            "client": {"other": "b", "empty": "", "nothing": None},
            "nonce": {"other": "zzz", "empty": "", "nothing": None},
            "n": {"negative": -4, "NaN": float("nan"), "huge": 10**12, "text": "many", "true": True},
            "steps": {"negative": -1, "NaN": float("nan"), "text": "few"},
            "counts": {
                "unknown group": {"zzz": 3},
                "negative": {"all": -2},
                "NaN": {"all": float("nan")},
                "more than n": {"all": 10**6},
                "text": {"all": "x"},
                "no mapping": [1],
            },
            "metrics": {
                "NaN": {"loss/a": float("nan")},
                "text": {"loss/a": "x"},
                "unknown": {"secret": 1.0},
                "a list": {"loss/a": [1.0] * 99},
                "a long name": {"loss/" + "a" * 500: 1.0},
                "no mapping": "x",
            },
            "arrays": {"unknown": {"zzz": np.zeros(size, np.float32)}},
            "further": {"a field": 1},
        }.items()
        for name, value in bad.items()
    }
    for name, changed in fields.items():
        yield name, lambda folder, template, changed=changed: lambda: _answer(_message(changed, size), size)
    draw = random.Random(23)
    for i in range(60):
        how, seed = draw.choice(["cut", "flip", "noise"]), draw.randrange(2**31)
        data = damaged(_message({}, size), how, random.Random(seed))
        # a changed bit of the vector is another update, which nobody can tell from an honest one
        must = "answered" if how == "flip" else "refused"
        yield f"{how} {i}", lambda folder, template, data=data: lambda: _answer(data, size), must


def _message(changed: dict[str, Any], size: int) -> bytes:
    """An update as a client packs it, with some fields changed."""
    from equipoise.platform.federation.messages import UPDATE_KIND, pack_parts

    changed = dict(changed)
    arrays = {"delta": changed.pop("delta", np.full(size, 0.01, np.float32))} | changed.pop("arrays", {})
    header = {
        "schema_hash": "h",
        "round": 3,
        "client": "a",
        "nonce": "r",
        "n": 20,
        "steps": 4,
        "counts": {"all": 20},
        "metrics": {},
    }
    return b"".join(pack_parts(UPDATE_KIND, header | changed, arrays))


def _answer(data: bytes, size: int) -> str:
    """What the server says to the bytes of an update; a ValueError if it refuses or rejects them."""
    from equipoise.platform.federation.messages import ClientUpdate
    from equipoise.platform.federation.server.validator import ExpectedUpdate, UpdateValidator

    expected = ExpectedUpdate("h", size, 3, "a", "r", 20, {"all": 20})
    if reason := UpdateValidator().check(ClientUpdate.from_bytes(_message({}, size)), expected):
        raise RuntimeError(f"an honest update is rejected: {reason}")
    if reason := UpdateValidator().check(ClientUpdate.from_bytes(data), expected):
        raise ValueError(f"rejected: {reason}")
    return "accepted"


GENERATORS: dict[str, Callable[[], Iterator[tuple]]] = {
    "study_keys": study_keys,
    "yaml": yaml_files,
    "tables": tables,
    "slides": slides,
    "h5": h5_files,
    "stores": stores,
    "run_folders": run_folders,
    "checkpoints": checkpoints,
    "messages": messages,
}
KINDS = tuple(GENERATORS)

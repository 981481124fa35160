"""Clinical, slides and omics tables that are wrong in form or content."""

import gzip
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.bad_input_template import (
    CONFIG,
    STUDY,
    Build,
    Work,
    clinical_rows,
    damaged,
    replaced,
    slide_rows,
    tables_of,
    write_rows,
    write_study,
)


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
        "UTF-32 without a mark": text.encode("utf-32-le"),
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
        "infinite scores": (text.replace(rows[4]["SCORE"], "inf").encode(), "of SCORE: 23 of 24"),
        "huge scores": (text.replace(rows[4]["SCORE"], "1e400").encode(), "of SCORE: 23 of 24"),
        "negative times": (text.replace(f",{rows[5]['OS']},", ",-5,").encode(), "of OS: 23 of 24"),
        "times of no number": (text.replace(f",{rows[5]['OS']},", ",n.d.,").encode(), "of OS: 23 of 24"),
        "keys NA": (text.replace("P005", "NA").replace("P006", "NA").encode(), "2 rows are left out"),
        "keys of spaces": (text.replace("P005", "   ").encode(), "1 rows are left out"),
        "Windows line ends": (text.replace("\n", "\r\n").encode(), ""),
        "Latin-1": (text.replace("MSS", "MSÜ", 1).encode("latin-1"), ""),
        "UTF-16": (text.encode("utf-16"), ""),
        "semicolons": (text.replace(",", ";").encode(), ""),
        "old Mac line ends": (text.replace("\n", "\r").encode(), ""),
        "a million characters in a cell": (
            text.replace("MSS", "x" * 1_000_000, 1).encode(),
            "neither a class",
        ),
        "emoji keys": (text.replace("P007", "😀").encode(), ""),
        "a formula": (text.replace("MSS", "=cmd|' /C calc'!A0", 1).encode(), "neither a class"),
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
    yield from wrong_cells("score", "SCORE", numbers, "remarked", "of SCORE: 19 of 24")
    times = [*numbers, "-3", "0", "1e7", "2020-01-01"]
    yield from wrong_cells("time", "OS", times, "remarked", "of OS: 19 of 24")
    yield from wrong_cells("status", "DEAD", ["2", "alive", "0.5", "?", "yes", "TRUE"], "refused", "")
    labels = ["msi-h", "MSI\u2010H", "MSI", "0", "x", "MSS/MSI-H"]
    yield from wrong_cells("label", "MSI", labels, "refused", "")
    yield from wrong_cells("label", "MSI", ["MSI-H "], "remarked", "of MSI: 24 of 24")

    def with_slides(changed: list[dict[str, str]]) -> Build:
        def build(folder: Path, template: Path) -> Work:
            tables_of(folder, template)
            write_rows(folder / "slides.csv", changed)
            return ["validate", *CONFIG]

        return build

    lost, outside = "has slide 21", "outside 0.1-5"
    paths = ["../../etc/passwd", "/etc/passwd", "a\x00b", "s" * 400, "CON", "~/x.svs", "s?3.svs"]
    for column, values, places, must, word in (
        ("MPP", ["40", "500", "-1", "0", "1e-9", "1e9"], (3, 10, 17), "remarked", outside),
        ("MPP", ["inf", "half", "0,5"], (3, 10, 17), "refused", ""),
        ("MPP", ["nan"], (3, 10, 17), "answered", ""),  # a slide of which the table says nothing
        ("FILENAME", ["", "NA"], (3, 10, 17), "remarked", "3 rows are left out"),
        ("FILENAME", paths, (3, 10, 17), "refused", ""),  # one file of three patients
        ("FILENAME", paths, (3,), "answered", ""),
        ("FILENAME", ["s00.svs"], (3,), "refused", ""),
        ("PATIENT", ["", "NA"], (3, 10, 17), "remarked", "3 rows are left out"),
        ("PATIENT", ["nobody", "P001 ", "p001", "1001.0"], (3, 10, 17), "remarked", lost),
    ):
        for value in values:
            changed = [row | {column: value} if i in places else row for i, row in enumerate(slides)]
            name = f"slides: {column} {value[:20]!r}, {len(places)} rows"
            yield name, with_slides(changed), must, word
    yield (
        "slides: a slide with two pixel sizes",
        with_slides([*slides, slides[0] | {"MPP": "0.25"}]),
        "remarked",
        "contradict in mpp",
    )
    yield (
        "slides: a slide of two patients",
        with_slides([*slides, slides[0] | {"PATIENT": "P005"}]),
        "refused",
        "",
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
        ("patients twice", [*genes, genes[0] | {"G1": "77"}], "refused"),
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

"""``equipoise predict``: an exported model on new slides, features or tables."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


@plain_job
def predict(
    model: Annotated[str, typer.Option("--model", help="Folder of `equipoise export`.", metavar="DIR")],
    out: Annotated[str, typer.Option("-o", "--out", help="Folder to write to.", metavar="DIR")],
    slides: Annotated[
        str | None,
        typer.Option(
            "--slides", help="Folder of slides, or a table with patient and file.", metavar="DIR|TABLE"
        ),
    ] = None,
    slides_dir: Annotated[
        str | None,
        typer.Option("--slides-dir", help="Folder that the files of the table are in.", metavar="DIR"),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            help="A feature store, or .h5 files of STAMP or TRIDENT; no slide is read.",
            metavar="STORE",
        ),
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option(
            "--tables", help="rna, cnv, mutation or clinical, by patient. Repeatable.", metavar="NAME=TABLE"
        ),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", help="Where a file is that the model asks for.", metavar="KEY=PATH"),
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", help="SHA-256 that `equipoise export` printed: nothing else is accepted."),
    ] = None,
    cohort: Annotated[str, typer.Option("--cohort", help="Name of the cohort of these patients.")] = "new",
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Encoder of .h5 files that do not name it.")
    ] = None,
    mpp: Annotated[float | None, typer.Option("--mpp", help="um/px of .h5 files that lack it.")] = None,
    px: Annotated[int | None, typer.Option("--px", help="Tile side in px of .h5 files that lack it.")] = None,
    accept_imported: Annotated[
        bool,
        typer.Option("--accept-imported", help="Take .h5 files of the same encoder, weights not compared."),
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Encoder workers on Ray; 0: in this process.")
    ] = 0,
    maps: Annotated[
        list[str] | None,
        typer.Option("--maps", help="Heat-maps of a task, or of all. Repeatable.", metavar="TASK"),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option("--coverage", help="Level of sets and intervals; that of the export if left out."),
    ] = None,
    pages: Annotated[bool, typer.Option("--pages/--no-pages", help="One page per patient.")] = True,
) -> dict[str, Any]:
    """Predict new patients: a table of scores and calls, flags of patients and slides. No labels are needed."""
    from pathlib import Path

    from equipoise.platform.prediction.run_prediction import Request, run_prediction

    done = run_prediction(
        Request(
            model=Path(model),
            out=Path(out),
            slides=slides,
            slides_dir=slides_dir,
            features=features,
            tables=tuple(tables or ()),
            files=tuple(file or ()),
            sha256=sha256,
            cohort=cohort,
            encoder=encoder,
            mpp=mpp,
            tile_px=px,
            accept_imported=accept_imported,
            workers=workers,
            pages=pages,
            maps=tuple(maps or ()),
            coverage=coverage,
        )
    )
    print(done.text)
    return done.fields


command = predict

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("predict")

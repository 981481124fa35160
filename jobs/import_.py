"""``equipoise import``: check an exported model where it arrives."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


@plain_job
def import_(
    folder: Annotated[str, typer.Argument(help="Folder of `equipoise export`.", metavar="DIR")],
    sha256: Annotated[
        str | None,
        typer.Option("--sha256", help="SHA-256 that `equipoise export` printed: nothing else is accepted."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option("--features", help="Check that the model can read this feature store.", metavar="STORE"),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", help="Where a file is that the model asks for.", metavar="KEY=PATH"),
    ] = None,
) -> dict[str, Any]:
    """Check an exported model: every file, version, weights; say what it predicts and reads."""
    from pathlib import Path

    from equipoise.platform.prediction.describe import description
    from equipoise.platform.prediction.exported_model import read_exported
    from equipoise.platform.prediction.features import check_store
    from equipoise.platform.prediction.local_files import parse_files

    model = read_exported(folder, sha256=sha256)
    print(description(model))
    given = parse_files(file or [])
    if given or not model.config.local_files:
        model.with_files(given).members()
        print("weights: loaded, they fit the model")
    else:
        print("weights: not loaded, name the files that the model asks for with --file")
    if features is not None:
        check_store(model, Path(features))
        print(f"features: the model can read {features}")
    synthetic = {"synthetic": True} if model.config.synthetic else {}
    return {"model": model.path.resolve(), "sha256": model.sealed.sha256, **synthetic}


command = import_

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("import")

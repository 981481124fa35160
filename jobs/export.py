"""``equipoise export``: a trained model as a folder that leaves this machine."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


@plain_job
def export(
    run: Annotated[
        str | None, typer.Argument(help="Run folder; runs/<name> of the study if left out.", metavar="RUN")
    ] = None,
    out: Annotated[str, typer.Option("-o", "--out", help="Folder to write.", metavar="DIR")] = "exported",
    config: Annotated[
        str | None, typer.Option("-c", "--config", help="Study file; needed for --refit.", metavar="PATH")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", help="Overrides that the run was started with.", metavar="KEY=VALUE"),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Train one model on all development patients and export it.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write every model as ONNX, too (models of tiles).")
    ] = False,
    license_name: Annotated[
        str | None,
        typer.Option("--license", help="Licence of the weights, as the card names it.", metavar="NAME"),
    ] = None,
) -> dict[str, Any]:
    """Export the models of a run: weights, preprocessing, thresholds, checksums and a model card."""
    from pathlib import Path

    from equipoise.platform.prediction.describe import description
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.run.model_export import export_model
    from equipoise.platform.study.reading import parse_overrides

    study = None if config is None else load_study(config, parse_overrides(settings or []))
    model = export_model(
        Path(out),
        run=run,
        study=study,
        license_name=license_name,
        refit=refit,
        onnx=onnx,
    )
    print(description(model))
    synthetic = {"synthetic": True} if model.config.synthetic else {}
    return {"out": model.path.resolve(), "sha256": model.sealed.sha256, **synthetic}


command = export

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("export")

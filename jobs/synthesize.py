"""``equipoise synthesize``: built-in synthetic cohorts with known effects."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


@plain_job
def synthesize(
    preset: Annotated[str, typer.Option("--preset", help="One of `equipoise ls cohorts`.")] = "quick",
    out: Annotated[str, typer.Option("-o", "--out", help="Folder to write to.", metavar="DIR")] = "synthetic",
    seed: Annotated[int, typer.Option("--seed", help="Seed of all random numbers.")] = 7,
    max_cpus: Annotated[int | None, typer.Option("--max-cpus", help="CPUs a local Ray may use.")] = None,
) -> dict[str, Any]:
    """Write synthetic slides, tables, omics and a study file; finished patients are skipped."""
    from pathlib import Path

    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.run.synthesis import synthesize as write

    study = write(preset, seed, Path(out), RayOptions(cpus=max_cpus))
    print(f"next: equipoise run -c {study}")
    return {"out": Path(out).resolve(), "study": study}


command = synthesize

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("synthesize")

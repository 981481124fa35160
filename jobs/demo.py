"""``equipoise demo``: a synthetic study, run from slides to report."""

from typing import Annotated

import typer

from equipoise.jobs.options import plain_job
from equipoise.jobs.outcome import JobResult, run_in_folder


@plain_job
def demo(
    preset: Annotated[str, typer.Option("--preset", help="One of `equipoise ls cohorts`.")] = "quick",
    out: Annotated[str, typer.Option("-o", "--out", help="Folder to write to.", metavar="DIR")] = "demo",
    seed: Annotated[int, typer.Option("--seed", help="Seed of all random numbers.")] = 7,
    max_cpus: Annotated[int | None, typer.Option("--max-cpus", help="CPUs a local Ray may use.")] = None,
) -> JobResult:
    """Make a synthetic study and run it: slides, features, cross-validation, report."""
    from pathlib import Path

    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.cluster.session import ray_session
    from equipoise.platform.run.folder import STEPS, RunFolder
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.run.synthesis import synthesize

    folder = Path(out)
    options = RayOptions(cpus=max_cpus)
    with ray_session(options):  # one Ray for rendering and extraction
        study = load_study(synthesize(preset, seed, folder, options))
        result = run_in_folder(study, RunFolder.open(study, str(folder / "run"), "auto"), STEPS)
    print(f"report: {result.fields['report']}")
    print(f"next: equipoise init -o study.yaml --tables DIR   (your own data; or edit {study.file})")
    return result


command = demo

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("demo")

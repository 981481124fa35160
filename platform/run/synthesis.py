"""Writes built-in synthetic cohorts: one Ray task per patient; finished patients are skipped.

The files of a patient depend on the seed, the cohort and the patient alone (:mod:`equipoise.datasets.synthetic`),
so neither the number of workers nor an interruption changes a byte.
"""

import logging
from pathlib import Path
from typing import Any

from equipoise.datasets.atomic_io import write_text
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.cluster.pools import cpu_label_selector
from equipoise.platform.cluster.session import ray_session
from equipoise.platform.errors import ToleranceError
from equipoise.platform.progress import ProgressBar
from equipoise.platform.registry import get

log = logging.getLogger("equipoise.synthesis")


def synthesize(preset: str, seed: int, root: Path, options: RayOptions) -> Path:
    """Write the slides, tables, truth and study file of a preset.

    Parameters
    ----------
    preset
        Name of the preset (``equipoise ls cohorts``).
    seed
        Root of every random number.
    root
        Folder to write to.
    options
        What Ray may use.

    Returns
    -------
    The study file.

    Raises
    ------
    ToleranceError
        If a patient could not be rendered; the others are on disk.
    """
    definition = get("cohorts", preset).load()(preset)
    from equipoise.datasets.synthetic import generate

    root.mkdir(parents=True, exist_ok=True)
    jobs = generate.plan(definition, seed)
    todo = [job for job in jobs if not generate.is_done(job, root)]
    log.info("synthesize preset=%s patients=%d to_do=%d", preset, len(jobs), len(todo))
    failures = _write_patients(todo, root, options) if todo else []
    if failures:
        shown = "\n".join(f"  {patient}: {error}" for patient, error in failures[:5])
        raise ToleranceError(
            f"{len(failures)} of {len(jobs)} patients could not be rendered\n{shown}", where=str(root)
        )
    generate.write_tables(definition, seed, root)
    study = root / "study.yaml"
    write_text(study, generate.study_yaml(definition, seed))
    return study


def _write_patients(jobs: list[Any], root: Path, options: RayOptions) -> list[tuple[str, str]]:
    """Write patients as Ray tasks; returns the patients that failed with their errors."""
    with ray_session(options):
        import ray

        from equipoise.datasets.synthetic.generate import write_patient

        remote = ray.remote(num_cpus=1, max_retries=2, label_selector=cpu_label_selector())(write_patient)
        # Only two tasks per CPU are submitted at a time: memory does not grow with the number of patients.
        ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting = list(reversed(jobs))
        running: dict[Any, Any] = {}
        failures: list[tuple[str, str]] = []
        with ProgressBar("synthesize", len(jobs), unit="patients") as bar:
            while waiting or running:
                while waiting and len(running) < ahead:
                    job = waiting.pop()
                    running[remote.remote(job, root.resolve())] = job
                (reference,), _ = ray.wait(list(running), num_returns=1)
                job = running.pop(reference)
                try:
                    ray.get(reference)
                except Exception as error:  # the task's own error, whatever it is, belongs to one patient
                    failures.append((job.patient, str(error).strip().splitlines()[-1]))
                bar.update(text=f"failed={len(failures)}")
    return failures

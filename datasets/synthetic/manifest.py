"""Tables on disk, and the manifest with size and SHA-256 of every file."""

import json
from pathlib import Path

from equipoise.datasets.atomic_io import write_text
from equipoise.datasets.synthetic.catalogue import resolve_preset
from equipoise.datasets.synthetic.jobs import VERSION, content_folder, is_done, plan, read_receipt
from equipoise.datasets.synthetic.omics import write_single_cell
from equipoise.datasets.synthetic.params import Preset
from equipoise.datasets.synthetic.slide import sha256
from equipoise.datasets.synthetic.tables import build_tables, institution_table, write_cohort

NOTICE = "SYNTHETIC: generated tissue and data of no patient; not for diagnosis"
INSTITUTIONS = "institutions.csv"
SINGLE_CELL = "single_cell.h5ad"


def write_tables(preset: str | Preset, seed: int, root: Path) -> None:
    """Write all tables of a preset, then the manifest.

    Slides need not be there yet; the manifest says which of them are.
    """
    preset = resolve_preset(preset)
    for cohort in preset.cohorts:
        write_cohort(build_tables(cohort, preset.knobs, seed, preset.content), root / cohort.name)
    write_text(root / INSTITUTIONS, institution_table(preset))
    if preset.single_cell:
        write_single_cell(preset, seed, root / SINGLE_CELL)
    write_manifest(preset, seed, root)


def write_manifest(preset: str | Preset, seed: int, root: Path) -> None:
    """Write ``manifest.json``: version, preset, seed, knobs, and size and SHA-256 of every file.

    ``complete`` is false, and ``absent`` names the patients, while slides of the plan are not there.
    """
    preset = resolve_preset(preset)
    files: dict[str, dict[str, object]] = {}
    absent: list[str] = []
    for job in plan(preset, seed):
        receipt = read_receipt(job, root)
        if receipt is None or not is_done(job, root):
            absent.append(job.patient)
            continue
        for file, entry in receipt["slides"].items():
            files[f"{job.cohort}/{content_folder(job.content)}/{file}"] = entry
    for path in _tables(preset, root):
        files[path.relative_to(root).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = {
        "notice": NOTICE,
        "version": VERSION,
        "preset": preset.name,
        "seed": seed,
        "knobs": preset.knobs.model_dump(),
        "cohorts": {c.name: {"role": c.role, "patients": c.patients} for c in preset.cohorts},
        "complete": not absent,
        "absent": absent,
        "files": dict(sorted(files.items())),
    }
    write_text(root / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _tables(preset: Preset, root: Path) -> list[Path]:
    """Everything but slides and receipts."""
    paths = [root / INSTITUTIONS, *([root / SINGLE_CELL] if preset.single_cell else [])]
    for cohort in preset.cohorts:
        folder = root / cohort.name
        paths += [folder / "clinical.csv", folder / "slides.csv"]
        paths += [folder / "truth" / "latents.parquet", folder / "truth" / "faults.csv"]
        paths += [*folder.glob("omics/*.parquet"), *folder.glob("truth/masks/*.png")]
    return [path for path in paths if path.is_file()]

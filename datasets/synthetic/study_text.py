"""The study file that comes with generated cohorts: complete, commented, ready to run."""

from equipoise.datasets.synthetic.catalogue import recipe
from equipoise.datasets.synthetic.clinical import TME
from equipoise.datasets.synthetic.jobs import content_folder
from equipoise.datasets.synthetic.manifest import INSTITUTIONS
from equipoise.datasets.synthetic.params import CohortPlan, Preset


def study_yaml(preset: str | Preset, seed: int) -> str:
    """Text of ``study.yaml`` for the root folder of the cohorts (paths are relative to it)."""
    preset = recipe(preset)
    wish = preset.study
    cohorts = "\n".join(_cohort(cohort, preset) for cohort in preset.cohorts)
    note = f"# {wish.note}\n" if wish.note else ""
    scores = "\n".join(f"  - {{name: {name}, type: regression, column: {name}}}" for name in TME)
    main = "  - {name: MSI, type: binary, column: MSI, positive: MSI-H, negative: [MSS], main: true}\n"
    survival = """
  - name: OS
    type: survival
    time: {column: OS_DAYS, unit: days}
    event: {column: OS_EVENT, event_value: "1"}"""
    if sum(cohort.patients for cohort in preset.cohorts) == 1:
        main = survival = ""  # one patient has one label of each task: such a preset is for extraction
    return f"""\
# SYNTHETIC cohorts, preset {preset.name}, seed {seed}: generated tissue and data of no patient.
{note}# Check with `equipoise validate -c study.yaml`, run with `equipoise run -c study.yaml`.
version: 1
name: synthetic-{preset.name}
seed: {seed}
synthetic: true                    # watermark SYNTHETIC on everything that comes out

cohorts:
{cohorts}

tasks:
{main}  # Microenvironment scores: lymphocytes, leukocyte and stromal fraction, proliferation, heterogeneity.
{scores}{survival}
  # More columns to predict:
  # - {{name: HRD, type: binary, column: HRD, positive: HRD, negative: [HRP]}}
  # - {{name: GRADE, type: multiclass, column: GRADE, classes: [G1, G2, G3]}}

features:
{_source(preset)}
  max_fail: {wish.max_fail}                   # share of slides that may fail before the run exits with 5
  store: features                  # shared by all studies over these slides

model:
  kind: joint                      # equipoise ls models
  dim: {wish.dim}
  heads: 4
  encoder_layers: 1
  decoder_layers: 1
  feedforward: {2 * wish.dim}
balancing: {{weighting: equal, aggregation: none}}
training:
  epochs: {wish.epochs}
  patience: {wish.patience}
  lr: 1.0e-3
  batch: {wish.batch}                         # few patients: small steps, many of them
  bag_tiles: {wish.bag_tiles}                    # tiles drawn anew in every epoch

splits:
  scheme: kfold                    # or site_preserved: source sites are in the barcodes
  folds: {wish.folds}
  inner_val: 0.2

evaluation: {{bootstrap: {wish.bootstrap}}}
"""


def _source(preset: Preset) -> str:
    """Tiles of slides to be encoded, or bags to be imported."""
    if preset.content == "bags":
        folders = "".join(
            f"\n    - {cohort.name}/{content_folder(preset.content)}" for cohort in preset.cohorts
        )
        return (
            f"  imported:                        # bags as *.h5 files: there is nothing to extract{folders}"
        )
    wish = preset.study
    return f"""\
  encoder: handcrafted             # equipoise ls encoders
  mpp: {wish.mpp}                         # micrometres per pixel, reached exactly from any scanner
  tile_px: {wish.tile_px}"""


def _cohort(cohort: CohortPlan, preset: Preset) -> str:
    name = cohort.name
    comment = "" if cohort.role == "develop" else "                 # evaluated only, never trained on"
    return f"""\
  - name: {name}
    role: {cohort.role}{comment}
    clinical: {name}/clinical.csv
    slides: {name}/slides.csv
    slides_dir: {name}/{content_folder(preset.content)}
    site: tss                      # or {{institution: {INSTITUTIONS}}}
    omics:
      rna: {name}/omics/rna.parquet
      cnv: {name}/omics/cnv.parquet
      mutation: {name}/omics/mutation.parquet"""

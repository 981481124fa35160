"""The study file that comes with generated cohorts: complete, commented, ready to run."""

from equipoise.datasets.synthetic.cancers import CANCERS
from equipoise.datasets.synthetic.catalogue import resolve_preset
from equipoise.datasets.synthetic.clinical import TME
from equipoise.datasets.synthetic.jobs import content_folder
from equipoise.datasets.synthetic.manifest import INSTITUTIONS
from equipoise.datasets.synthetic.params import CohortPlan, Preset, StudyDefaults


def study_yaml(preset: str | Preset, seed: int) -> str:
    """Text of ``study.yaml`` for the root folder of the cohorts (paths are relative to it)."""
    preset = resolve_preset(preset)
    defaults = preset.study
    cohorts = "\n".join(_cohort(cohort, preset) for cohort in preset.cohorts)
    note = f"# {defaults.note}\n" if defaults.note else ""
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
{_tasks(preset)}

features:
{_source(preset)}
  max_fail: {defaults.max_fail}                   # share of slides that may fail before the run exits with 5
  store: features                  # shared by all studies over these slides

{_model(defaults)}
balancing: {{weighting: equal, aggregation: none}}
training:
  epochs: {defaults.epochs}
  patience: {defaults.patience}
  lr: 1.0e-3
  batch: {defaults.batch}                         # few patients: small steps, many of them
  bag_tiles: {defaults.bag_tiles}                    # tiles sampled in every epoch

splits:
  scheme: kfold                    # or site_preserved: source sites are in the barcodes
  folds: {defaults.folds}
  inner_val: 0.2

evaluation: {{bootstrap: {defaults.bootstrap}}}
{_federation(defaults)}{_search(defaults)}"""


_SURVIVAL = """\
  - name: OS
    type: survival
    time: {column: OS_DAYS, unit: days}
    event: {column: OS_EVENT, event_value: "1"}"""


def _tasks(preset: Preset) -> str:
    """Survival alone; or MSI, the scores of the microenvironment and survival."""
    defaults = preset.study
    if defaults.tasks == "survival":
        return _SURVIVAL
    if defaults.tasks == "consensus":
        return _consensus(preset)
    scores = "\n".join(f"  - {{name: {name}, type: regression, column: {name}}}" for name in TME)
    main = "  - {name: MSI, type: binary, column: MSI, positive: MSI-H, negative: [MSS], main: true}\n"
    survival = f"\n{_SURVIVAL}"
    if sum(cohort.patients for cohort in preset.cohorts) == 1:
        main = survival = ""  # one patient has one label of each task: such a preset is for extraction
    hrd = "- {name: HRD, type: binary, column: HRD, positive: HRD, negative: [HRP]}"
    main, hint = (f"{main}  {hrd}\n", "") if defaults.hrd else (main, f"  # {hrd}\n")
    return f"""\
{main}  # Microenvironment scores: lymphocytes, leukocyte and stromal fraction, proliferation, heterogeneity.
{scores}{survival}
  # More columns to predict:
{hint}  # - {{name: GRADE, type: multiclass, column: GRADE, classes: [G1, G2, G3]}}"""


def _consensus(preset: Preset) -> str:
    """Subtypes of all cancers of a preset as three classes, MSI and survival."""
    cancers = dict.fromkeys(cohort.style.cancer for cohort in preset.cohorts)
    merged: dict[str, list[str]] = {}
    for cancer in cancers:
        for subtype, common in CANCERS[cancer].consensus.items():
            merged.setdefault(common, []).append(f"{subtype}: {common}")
    lines = "\n".join(
        f"      {', '.join(dict.fromkeys(pairs))}{',' if n < len(merged) else ''}"
        for n, pairs in enumerate(merged.values(), start=1)
    )
    return f"""\
  - name: subtype
    type: multiclass
    column: SUBTYPE
    main: true
    classes: {{                     # every cancer names its own; three classes are common to all
{lines}
    }}
  - {{name: MSI, type: binary, column: MSI, positive: MSI-H, negative: [MSS]}}
{_SURVIVAL}"""


def _model(defaults: StudyDefaults) -> str:
    """Tiles alone, or tiles and omics of patients who have them."""
    if defaults.reads != ("wsi",):
        return f"""\
tables: {{rna: {{genes: 200}}}}        # the most variable genes of the training patients
model:
  kind: concat                     # equipoise ls models; a modality that a patient lacks is learned around
  modalities: [{", ".join(defaults.reads)}]"""
    return f"""\
model:
  kind: joint                      # equipoise ls models
  dim: {defaults.dim}
  heads: 4
  encoder_layers: 1
  decoder_layers: 1
  feedforward: {2 * defaults.dim}"""


def _federation(defaults: StudyDefaults) -> str:
    return (
        f"""
federation:                        # the cohorts train one model without sharing patients
  sites: cohort                    # institution, tss, region, site; controls: iid, dirichlet
  rounds: {defaults.rounds}
  strategy: fedavg                 # equipoise ls strategies
  server_aggregation: mean         # equipoise ls server_aggregations
  evaluation: {{plans: [folds, leave_one_cohort_out]}}
"""
        if defaults.rounds
        else ""
    )


def _search(defaults: StudyDefaults) -> str:
    # Trials of a study that federates train across its sites.
    varied = (
        "federation.strategy: [fedavg, fedprox, fedyogi]"
        if defaults.rounds
        else "training.weight_decay: {loguniform: [1.0e-4, 1.0e-1]}"
    )
    return (
        f"""
search:                            # the winner is a study of its own, search/best.yaml
  trials: {defaults.trials}                       # the first is this study as written
  folds: 3
  holdout: 0.25                    # patients that no trial sees: they measure the winner
  space:
    balancing: [equal, uncertainty, dwa, equal+pcgrad, uncertainty+pcgrad, dwa+cagrad]
    training.lr: {{loguniform: [1.0e-4, 1.0e-2]}}
    {varied}
"""
        if defaults.trials
        else ""
    )


def _source(preset: Preset) -> str:
    """Tiles of slides to be encoded, or bags to be imported."""
    if preset.content == "bags":
        folders = "".join(
            f"\n    - {cohort.name}/{content_folder(preset.content)}" for cohort in preset.cohorts
        )
        return (
            f"  imported:                        # bags as *.h5 files: there is nothing to extract{folders}"
        )
    defaults = preset.study
    return f"""\
  encoder: handcrafted             # equipoise ls encoders
  mpp: {defaults.mpp}                         # micrometres per pixel, reached exactly from any scanner
  tile_px: {defaults.tile_px}"""


def _cohort(cohort: CohortPlan, preset: Preset) -> str:
    name = cohort.name
    clinical = f"{name}/clinical.csv"
    unknown = [label for label in cohort.left_out if label != "rna"]
    if unknown:
        renamed = ", ".join(f"{label}: {label}_left_out" for label in unknown)
        clinical = f"{{path: {clinical}, rename: {{{renamed}}}}}"
    rna = f"      rna: {{path: {name}/omics/rna.parquet, kind: counts}}\n"
    rna = "" if "rna" in cohort.left_out else rna
    comment = "" if cohort.role == "develop" else "                 # evaluated only, never trained on"
    return f"""\
  - name: {name}
    role: {cohort.role}{comment}
    clinical: {clinical}
    slides: {name}/slides.csv
    slides_dir: {name}/{content_folder(preset.content)}
    site: tss                      # or {{institution: {INSTITUTIONS}}}
    omics:
{rna}      cnv: {name}/omics/cnv.parquet
      mutation: {name}/omics/mutation.parquet"""

"""The built-in sites and presets. Light: tables of numbers, no array code."""

import difflib

from equipoise.datasets.errors import DataError
from equipoise.datasets.synthetic.params import (
    SLIDE_FAULTS,
    CohortPlan,
    FaultName,
    Knobs,
    Preset,
    Role,
    SiteStyle,
    StudyDefaults,
)

#: Sites differ in stain, scanner, compression and resolution as hospitals do.
SITES: dict[str, SiteStyle] = {
    "syn-crc-a": SiteStyle(
        number=1, letters="CA", sources="S", cancer="crc", p_msi=0.16, p_hrd=0.15, pen=0.10, fold=0.10
    ),
    "syn-crc-b": SiteStyle(
        number=2,
        letters="CB",
        sources="T",
        cancer="crc",
        p_msi=0.16,
        p_hrd=0.15,
        mpp=0.25,
        objective=40,
        haematoxylin=(0.56, 0.72, 0.41),
        eosin=(0.21, 0.86, 0.46),
        haematoxylin_gain=0.85,
        eosin_gain=1.15,
        white=(238, 240, 236),
        quality=60,
        blur_um=0.35,
        pen=0.20,
        fold=0.05,
        jitter=0.07,
    ),
    "syn-luad-a": SiteStyle(
        number=3,
        letters="LA",
        sources="U",
        cancer="luad",
        p_msi=0.04,
        p_hrd=0.30,
        container="philips",
        haematoxylin=(0.68, 0.68, 0.27),
        eosin=(0.09, 0.95, 0.30),
        haematoxylin_gain=1.1,
        eosin_gain=0.85,
        white=(246, 244, 248),
        quality=75,
    ),
    "syn-luad-b": SiteStyle(
        number=4,
        letters="LB",
        sources="V",
        cancer="luad",
        p_msi=0.04,
        p_hrd=0.30,
        container="generic",
        mpp=0.4961,
        objective=None,
        haematoxylin=(0.60, 0.72, 0.36),
        eosin=(0.16, 0.90, 0.41),
        haematoxylin_gain=0.95,
        eosin_gain=1.1,
        white=(235, 236, 240),
        gamma=1.12,
        quality=45,
        blur_um=0.5,
        fold=0.15,
        jitter=0.07,
        no_rna_sources=(3,),
    ),
    "syn-ucec-a": SiteStyle(
        number=5,
        letters="UA",
        sources="W",
        cancer="ucec",
        p_msi=0.25,
        p_hrd=0.20,
        container="dicom",
        haematoxylin=(0.63, 0.70, 0.33),
        eosin=(0.11, 0.94, 0.33),
        haematoxylin_gain=1.05,
        eosin_gain=0.9,
        white=(243, 243, 243),
        quality=85,
        pen=0.05,
    ),
    "syn-stad-a": SiteStyle(
        number=6,
        letters="SA",
        sources="X",
        cancer="stad",
        p_msi=0.22,
        p_hrd=0.15,
        haematoxylin=(0.61, 0.71, 0.35),
        eosin=(0.18, 0.90, 0.40),
        haematoxylin_gain=0.9,
        eosin_gain=1.05,
        white=(240, 242, 240),
        quality=70,
        fold=0.05,
    ),
    "syn-ov-a": SiteStyle(
        number=7,
        letters="OA",
        sources="Y",
        cancer="ov",
        p_msi=0.08,
        p_hrd=0.45,
        container="generic",
        mpp=0.4961,
        objective=None,
        haematoxylin=(0.66, 0.69, 0.30),
        eosin=(0.12, 0.93, 0.35),
        eosin_gain=1.1,
        white=(245, 243, 242),
        quality=65,
        blur_um=0.2,
    ),
}

#: Sites of the presets ``showcase`` and ``bench``.
_FIRST_FIVE = ("syn-crc-a", "syn-crc-b", "syn-luad-a", "syn-luad-b", "syn-ucec-a")


def _plan(
    name: str, patients: int, side_um: float, role: Role = "develop", faults: tuple[FaultName, ...] = ()
) -> CohortPlan:
    return CohortPlan(
        name=name, patients=patients, side_um=side_um, role=role, style=SITES[name], faults=faults
    )


def _enriched(plan: CohortPlan) -> CohortPlan:
    """A third of the patients has MSI, so that every fold and the external cohort have enough of either class."""
    return plan.model_copy(update={"style": plan.style.model_copy(update={"p_msi": 1 / 3})})


def _partial(plan: CohortPlan) -> CohortPlan:
    """A cohort as consortia have them: HRD is known for lung only, MSI for the others, one never sequenced RNA."""
    unknown = ("MSI",) if plan.style.cancer == "luad" else ("HRD",)
    rna = ("rna",) if plan.style.no_rna_sources else ()
    return plan.model_copy(update={"left_out": (*unknown, *rna)})


_FEW_MISSING = Knobs(missing_slide=0.03, missing_rna=0.05, missing_label=0.03, missing_tme=0.03)
_SMALL_STUDY = StudyDefaults(mpp=1.0, tile_px=112, dim=32, folds=2, epochs=4, patience=4, bootstrap=50)

PRESETS_BY_NAME: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",
            cohorts=(_plan("syn-crc-a", 8, 640), _plan("syn-crc-b", 8, 640)),
            knobs=_FEW_MISSING,
            study=_SMALL_STUDY,
        ),
        Preset(
            name="quick",
            cohorts=(
                _enriched(_plan("syn-crc-a", 256, 512)),
                _enriched(_plan("syn-crc-b", 128, 512, "external")),
            ),
            study=StudyDefaults(batch=8),
        ),
        Preset(
            name="demo",
            cohorts=(
                _plan("syn-crc-a", 24, 2048),
                _plan("syn-crc-b", 24, 1280, "external"),
                _plan("syn-luad-a", 24, 2048),
                _plan("syn-luad-b", 24, 2048, "external"),
                _plan("syn-ucec-a", 24, 2048),
            ),
            single_cell=20,
        ),
        Preset(
            name="showcase",
            cohorts=tuple(_partial(_plan(name, 60, 1024)) for name in _FIRST_FIVE),
            study=StudyDefaults(
                epochs=40,
                patience=12,
                batch=8,
                hrd=True,
                reads=("wsi", "rna"),
                rounds=12,
                trials=12,
                note="Every step: cross-validation, a federation of five cohorts that lack tasks and RNA, a search.",
            ),
        ),
        Preset(
            name="halves",
            cohorts=(_plan("syn-luad-a", 400, 768),),
            # Half of the variance of the log hazard is in the slide alone, half in omics alone.
            knobs=Knobs(
                b_shared=0,
                b_image=2.5,
                b_omics=2.5,
                rho_image=0.97,
                rho_omics=0.85,
                image_contrast=2.5,
                missing_slide=0,
                missing_rna=0.1,
                missing_label=0.02,
            ),
            study=StudyDefaults(
                tasks="survival",
                reads=("wsi", "rna", "cnv", "mutation"),
                batch=32,
                note="Survival half in the slide, half in omics: fusion has something to gain here by construction.",
            ),
        ),
        Preset(
            name="pancancer",
            cohorts=(
                *(
                    _enriched(_plan(name, 96, 512))
                    for name in ("syn-crc-a", "syn-luad-a", "syn-ucec-a", "syn-ov-a")
                ),
                _enriched(_plan("syn-stad-a", 96, 512, "external")),
            ),
            # Survival in the slide and in omics, as in `halves`, beside what both show; expression differs by organ.
            knobs=Knobs(
                b_image=1.5,
                b_omics=1.5,
                rho_image=0.97,
                image_contrast=2.5,
                organ=0.5,
                missing_slide=0,
                missing_rna=0.12,
                missing_label=0.03,
            ),
            study=StudyDefaults(
                tasks="consensus",
                reads=("wsi", "rna"),
                batch=16,
                note="Five cancers, one held out: subtype, MSI and survival in one model; 12 % have no RNA.",
            ),
        ),
        Preset(
            name="giga",
            cohorts=(_plan("syn-crc-a", 1, 2048).model_copy(update={"mosaic": 10}),),
            knobs=Knobs(missing_slide=0),
            study=StudyDefaults(note="One slide of 1.7 gigapixels: for extraction, not for training."),
        ),
        Preset(
            name="bench",
            cohorts=tuple(_plan(name, 400, 1024) for name in _FIRST_FIVE),
            content="bags",
            study=StudyDefaults(
                epochs=20,
                note="Feature bags without slides: *.h5 in STAMP's layout.",
            ),
        ),
        Preset(
            name="faults",
            cohorts=(
                _plan("syn-crc-a", 16, 640, faults=(*SLIDE_FAULTS, "duplicate_patient", "swapped_labels")),
                _plan("syn-crc-b", 12, 640, faults=("poisoned_site",)),
            ),
            knobs=_FEW_MISSING,
            study=_SMALL_STUDY.model_copy(update={"max_fail": 0.5}),
        ),
    )
}


def resolve_preset(preset: str | Preset) -> Preset:
    """The preset of that name; a :class:`Preset` is passed through.

    Raises
    ------
    DataError
        If no preset has that name.
    """
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS_BY_NAME:
        close = difflib.get_close_matches(preset, PRESETS_BY_NAME, n=1)
        raise DataError(
            f"unknown synthetic preset {preset!r}; known: {', '.join(PRESETS_BY_NAME)}",
            fix=f"did you mean {close[0]!r}?" if close else None,
        )
    return PRESETS_BY_NAME[preset]

"""Parameters of the generator: knobs of the biology, style of a site, what a preset consists of.

Light on purpose (pydantic only): the registry and ``equipoise ls cohorts`` read it.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from equipoise.datasets.params import StrictParams

Triple = tuple[float, float, float]
Share = Annotated[float, Field(ge=0, le=1)]
ContainerName = Literal["aperio", "philips", "generic", "trestle", "dicom"]
Role = Literal["develop", "external"]
Content = Literal["slides", "bags"]
FaultName = Literal[
    "no_mpp",
    "absurd_mpp",
    "missing_tile",
    "corrupt_tile",
    "truncated",
    "blank",
    "two_slides",
    "duplicate_patient",
    "swapped_labels",
    "poisoned_site",
]
#: Faults of one patient's slide; the others are faults of tables.
SLIDE_FAULTS: tuple[FaultName, ...] = (
    "no_mpp",
    "absurd_mpp",
    "missing_tile",
    "corrupt_tile",
    "truncated",
    "blank",
    "two_slides",
)

#: Ruifrok's haematoxylin and an eosin that is less magenta than his.
DEFAULT_HAEMATOXYLIN: Triple = (0.64, 0.69, 0.34)
DEFAULT_EOSIN: Triple = (0.13, 0.92, 0.37)


class Knobs(StrictParams):
    """Strength of what is planted, and how much goes missing.

    Defaults are those of the specification; they set the difficulty and are not tuned in favour of a method.
    """

    rho_image: Share = Field(
        default=0.90, description="correlation of a latent with what the slide shows of it"
    )
    rho_omics: Share = Field(
        default=0.92, description="correlation of a latent with what the omics show of it"
    )
    msi_effect: float = Field(
        default=1.5, ge=0, description="shift of immune, mucin and grade latents by MSI"
    )
    tme_noise: float = Field(
        default=0.35, ge=0, description="sd of fresh noise in each microenvironment score"
    )
    b_shared: float = Field(default=0.80, description="log hazard per sd of what image and omics both show")
    b_omics: float = Field(default=1.05, description="log hazard per sd of what only omics show")
    b_image: float = Field(default=0.65, description="log hazard per sd of what only the slide shows")
    # Absent from manifests and fingerprints at its default, so that cohorts from before it keep their bytes.
    image_contrast: float = Field(
        default=1.0,
        ge=0,
        exclude_if=lambda contrast: contrast == 1,
        description="factor of what only the slide shows, on the logarithm of gland spacing and epithelial height",
    )
    organ: float = Field(
        default=0.0,
        ge=0,
        exclude_if=lambda organ: organ == 0,
        description="sd of the log expression by which cancers differ from each other, gene by gene",
    )
    missing_slide: Share = Field(default=0.04, description="share of patients without a slide")
    missing_rna: Share = Field(default=0.08, description="share of patients without expression")
    missing_label: Share = Field(default=0.10, description="share of missing values of each clinical label")
    missing_tme: Share = Field(
        default=0.08, description="share of missing values of each microenvironment score"
    )


class SiteStyle(StrictParams):
    """A cohort's hospital: patients' prevalence, scanner, stain, habits.

    ``number`` goes into every seed and ``letters`` into every barcode: both belong to the site for good, so
    that a site gives the same patients in every preset that has it.
    """

    number: int = Field(ge=1)
    letters: str = Field(pattern="^[A-Z]{2}$", description="first two characters of the participant code")
    sources: str = Field(pattern="^[A-Z]$", description="first character of its tissue-source-site codes")
    cancer: Literal["crc", "luad", "ucec", "stad", "ov"]
    p_msi: Share
    p_hrd: Share
    container: ContainerName = "aperio"
    mpp: float = Field(default=0.5, gt=0.1, lt=5)
    objective: float | None = 20
    haematoxylin: Triple = DEFAULT_HAEMATOXYLIN
    eosin: Triple = DEFAULT_EOSIN
    haematoxylin_gain: float = 1.0
    eosin_gain: float = 1.0
    white: Triple = (244, 243, 245)
    gamma: float = 1.0
    blur_um: float = Field(default=0, ge=0)
    quality: int = Field(default=80, ge=1, le=100)
    jitter: float = Field(default=0.05, ge=0, description="sd of the stain's variation between slides")
    pen: Share = Field(default=0, description="share of slides with pen marks")
    fold: Share = Field(default=0, description="share of slides with a tissue fold")
    no_rna_sources: tuple[int, ...] = Field(default=(), description="source sites that never sequenced")


class CohortPlan(StrictParams):
    """One cohort of a preset."""

    name: str = Field(pattern="^syn-[a-z0-9-]+$")
    patients: int = Field(ge=1, le=999)
    side_um: float = Field(ge=256, le=4096, description="width and height of each slide")
    mosaic: int = Field(default=1, ge=1, le=16, description="repeat the slide this often in x and y")
    role: Role = "develop"
    style: SiteStyle
    faults: tuple[FaultName, ...] = Field(
        default=(), description="faults of the cohort; a slide fault affects one patient"
    )
    left_out: tuple[Literal["MSI", "HRD", "rna"], ...] = Field(
        default=(), description="what the study does not know of this cohort, although the tables have it"
    )

    @model_validator(mode="after")
    def _mosaic_has_whole_tiles(self) -> Self:
        if self.mosaic > 1 and (self.side_um / self.style.mpp) % 4096:
            raise ValueError(f"{self.name}: the slide of a mosaic must be a multiple of 4096 px wide")
        return self

    @model_validator(mode="after")
    def _faults_fit(self) -> Self:
        if self.style.container != "aperio" and set(self.faults) & set(SLIDE_FAULTS):
            raise ValueError(
                f"{self.name}: faults of slides are made in Aperio files, not {self.style.container}"
            )
        return self


class StudyDefaults(StrictParams):
    """Settings of the generated study file that suit the preset."""

    mpp: float = 0.5
    tile_px: int = 224
    dim: int = 96
    folds: int = 3
    epochs: int = 60
    patience: int = 20
    batch: int = Field(default=4, description="few patients: small steps, many of them")
    bag_tiles: int = Field(default=16, description="tiles sampled in every epoch, against memorising bags")
    bootstrap: int = 500
    tasks: Literal["labels", "survival", "consensus"] = Field(
        default="labels",
        description="MSI, scores of the microenvironment and survival; survival alone; or the subtypes that all "
        "cancers have, MSI and survival",
    )
    hrd: bool = Field(default=False, description="predict HRD, too")
    reads: tuple[Literal["wsi", "rna", "cnv", "mutation"], ...] = Field(
        default=("wsi",), description="modalities of the model; with several it fuses them"
    )
    rounds: int = Field(default=0, ge=0, description="of a federation of the cohorts; 0: none")
    trials: int = Field(default=0, ge=0, description="of a search; 0: none")
    note: str = Field(default="", description="what a reader of the study should know")
    max_fail: float = Field(default=0.05, description="share of slides that may fail")


class Preset(StrictParams):
    """A complete definition of cohorts; with a seed it fixes every byte."""

    name: str
    cohorts: tuple[CohortPlan, ...] = Field(min_length=1)
    knobs: Knobs = Knobs()
    content: Content = Field(default="slides", description="pixels, or features without them")
    single_cell: int = Field(default=0, ge=0, description="cells of each type and donor; 0: no reference")
    study: StudyDefaults = StudyDefaults()


class PresetOptions(StrictParams):
    """Options of a built-in preset."""

    seed: int = Field(default=7, ge=0, description="fixes every byte of the cohorts")

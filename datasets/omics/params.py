"""Parameters of input tables in a study: covariates, and how omics are prepared. Light: pydantic only."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from equipoise.datasets.params import CohortSource, ExpressionKind, Labels, StrictParams

#: Modalities that are omics, in the order in which models see them.
OMICS = ("rna", "cnv", "mutation")
#: Covariates of the clinical table, as a modality.
CLINICAL = "clinical"

#: Kinds of RNA values that may be added up.
LINEAR_KINDS: frozenset[ExpressionKind] = frozenset({"counts", "tpm"})
#: Kind of RNA values → the logarithm that they need before a model learns from them.
SCALES: dict[ExpressionKind, Literal["log_cpm", "log1p", "none"]] = {
    "counts": "log_cpm",
    "tpm": "log1p",
    "log": "none",
    "zscore": "none",
}
#: Kinds of RNA values in messages.
LONG_NAMES: dict[ExpressionKind, str] = {
    "counts": "counts",
    "tpm": "abundances (TPM, FPKM or CPM)",
    "log": "logarithms",
    "zscore": "z-scores",
}

Genes = Annotated[int, Field(ge=1)]


class Covariate(StrictParams):
    """A column of the clinical table that models may read."""

    column: str = Field(min_length=1)
    """Column of the clinical table; never one that a task predicts."""
    type: Literal["number", "category"]
    """``number``: standardised, gaps filled with the training median; ``category``: a 0/1 column per value."""
    missing: Labels = Field(default=[])
    """Values that stand for missing beside empty cells and NA: Unknown, MX, -9."""
    allow_wide_range: bool = False
    """Accept numbers over more than six orders of magnitude, or whole numbers of nine and more digits."""

    @model_validator(mode="after")
    def _range_is_of_numbers(self) -> Self:
        if self.allow_wide_range and self.type != "number":
            raise ValueError("'allow_wide_range' is for numbers: leave it out")
        return self


class OmicsParams(StrictParams):
    """How an omics matrix becomes input; everything is fitted on training patients."""

    genes: Genes | None = None
    """Keep this many columns, those of largest variance among training patients; all if not given."""
    components: Genes | None = None
    """Replace the columns by this many principal components at most, fitted on training patients and not whitened:
    all scores are divided by the standard deviation of the first, so that later ones stay small."""


class GeneSetParams(StrictParams):
    """Gene sets as a choice of columns; a path alone keeps their genes."""

    file: str | None = None
    """GMT file, or table with one column per set (SurvPath), relative to the study file."""
    sets: dict[str, list[str]] = Field(default={})
    """Sets in place of a file: name and genes."""
    use: Literal["genes", "scores"] = "genes"
    """``genes``: the genes of the sets are the columns. ``scores``: every set is a column, the mean of its genes after
    their standardisation, divided by its standard deviation among training patients."""
    min_genes: Genes = 1
    """Sets of which the table has fewer genes are left out."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: Any) -> Any:
        return {"file": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _file_or_sets(self) -> Self:
        if (self.file is None) == (not self.sets):
            raise ValueError("gene sets come from a file or stand under 'sets': give one of the two")
        if empty := [name for name, genes in self.sets.items() if not genes]:
            raise ValueError(f"gene set {empty[0]!r} has no gene")
        return self


GeneSetField = Annotated[
    GeneSetParams, BeforeValidator(lambda v: v, json_schema_input_type=str | GeneSetParams)
]


class RnaEncoderSource(StrictParams):
    """An RNA encoder: a name, and the encoder's parameters beside it."""

    name: str = Field(min_length=1)
    """See ``equipoise ls rna_encoders``."""
    seed: int = Field(default=0, ge=0)
    """Of the encoder's random draws; apart from the study's seed, so that studies share vectors."""
    params: dict[str, Any] = Field(default={})
    """Parameters of the encoder; they may stand beside the name."""

    @model_validator(mode="before")
    @classmethod
    def _parameters_beside_the_name(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data}
        if not isinstance(data, dict):
            return data
        beside = {key: value for key, value in data.items() if key not in cls.model_fields}
        inside = data.get("params", {})
        if not beside or not isinstance(inside, dict):
            return data
        if twice := sorted(set(beside) & set(inside)):
            raise ValueError(f"{twice[0]!r} stands beside the name and under params: leave one out")
        kept = {key: value for key, value in data.items() if key in cls.model_fields}
        return kept | {"params": inside | beside}


# The identity validator tells the JSON schema that parameters may stand beside the name.
EncoderField = Annotated[
    RnaEncoderSource, BeforeValidator(lambda v: v, json_schema_input_type=str | dict[str, Any])
]


class RnaParams(OmicsParams):
    """How RNA becomes input."""

    encoder: EncoderField | None = None
    """Read vectors of a frozen encoder in place of genes: ``{name: scgpt, folder: FOLDER}``. Computed once by the step
    ``extract`` and kept beside the features; then treated like a table without a transform. The encoder gets counts or
    abundances, so logarithms need their ``log_base``."""
    adapter: str | None = Field(default=None, min_length=1)
    """Folder of an adapter that was trained for this encoder (``equipoise adapt-rna``), relative to the study file."""
    transform: Literal["auto", "log_cpm", "log1p", "log", "none"] = "auto"
    """``log_cpm``: counts to log2(1 + counts per million); ``log1p``: log2(1 + x) for TPM or FPKM; ``none``: the
    values are logarithms or z-scores already; ``auto``: whole numbers, other positive numbers, or the rest.
    ``log``: ln(1 + (x - training minimum) / (training quartile - minimum + .001)) per gene, for z-scores of values
    that never saw a logarithm: most of their values are negative, and the largest are in the thousands."""
    clip: Annotated[float, Field(gt=0)] | None = 5.0
    """Values further from the centre than this many spreads are moved to there (z-scores of 36,893 exist)."""
    clip_standardised: Annotated[float, Field(gt=0)] | None = None
    """Standardised values beyond this many standard deviations are moved to there (a second clip)."""
    standardise: Literal["training", "per_cohort"] = "training"
    """Mean, standard deviation and everything before them from all training patients, or for every cohort from its own
    (labels are not looked at). An external cohort is then prepared from its own patients, so that the score of one
    of them depends on the others."""
    gene_sets: GeneSetField | None = None
    """Columns by gene set: only the genes of these sets, or a score per set."""

    @model_validator(mode="after")
    def _scores_are_columns(self) -> Self:
        if self.gene_sets is not None and self.gene_sets.use == "scores" and (self.components or self.genes):
            raise ValueError(
                "scores of gene sets are the columns: leave out 'genes' and 'components', or write use: genes"
            )
        return self

    @model_validator(mode="after")
    def _adapter_needs_its_encoder(self) -> Self:
        if self.adapter is not None and self.encoder is None:
            raise ValueError("'adapter' maps vectors of an encoder: name the encoder, too")
        if self.encoder is not None and self.transform not in ("auto", "none"):
            raise ValueError(
                f"'transform: {self.transform}' is for genes; vectors of an encoder have none: leave it out"
            )
        if self.encoder is not None and self.gene_sets is not None:
            raise ValueError(
                "'gene_sets' are of genes; vectors of an encoder have none: leave one of the two out"
            )
        return self


class TableParams(StrictParams):
    """How tables become what models read."""

    clinical: list[Covariate] = Field(default=[])
    """Covariates: the modality ``clinical``."""
    rna: RnaParams = RnaParams()
    """RNA: to logarithms, clipped, standardised."""
    cnv: OmicsParams = OmicsParams()
    """Copy numbers: standardised."""
    mutation: OmicsParams = OmicsParams()
    """Mutations: left as they are, 0 or 1."""

    @model_validator(mode="after")
    def _columns_once(self) -> Self:
        counts = Counter(covariate.column for covariate in self.clinical)
        if twice := [column for column, count in counts.items() if count > 1]:
            raise ValueError(f"column {twice[0]!r} stands {counts[twice[0]]} times under clinical: keep one")
        return self


def transform_problems(tables: TableParams, sources: Sequence[CohortSource]) -> list[str]:
    """A transform that contradicts the declared kind of RNA, as a line of a study's problems."""
    kind = declared_kind(sources)
    if kind not in ("log", "zscore") or tables.rna.transform not in ("log_cpm", "log1p"):
        return []
    remedy = "auto, log or none" if kind == "zscore" else "auto or none"
    return [
        f"tables.rna.transform: {tables.rna.transform} is for counts and abundances, and the cohorts declare "
        f"{LONG_NAMES[kind]} (kind: {kind}): write transform: {remedy}"
    ]


def declared_kind(sources: Sequence[CohortSource]) -> ExpressionKind | None:
    """The first kind that a development cohort declares."""
    kinds = [s.omics["rna"].kind for s in sources if s.role == "develop" and "rna" in s.omics]
    return next((kind for kind in kinds if kind is not None), None)

"""Parameters of tables, cohorts, sites and splits in a study: pydantic models only.

The study schema imports this module (``equipoise --help`` must stay fast), so no pandas here. Attribute
docstrings become the descriptions of the JSON schema that editors show. They are
implemented by :mod:`equipoise.datasets.tables.reading`, :mod:`~equipoise.datasets.cohorts.cohort`,
:mod:`~equipoise.datasets.cohorts.sites` and :mod:`~equipoise.datasets.cohorts.splits`; prediction targets are in
:mod:`equipoise.datasets.tables.tasks`.
"""

import math
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

Modality = Literal["rna", "cnv", "mutation"]
#: What RNA values are: read counts; abundances (TPM, FPKM, CPM); logarithms of either; z-scores.
ExpressionKind = Literal["counts", "tpm", "log", "zscore"]


class StrictParams(BaseModel):
    """Base of the parameter models of a study: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def label_key(text: str) -> str:
    """The form in which two spellings of a label are the same: ``"1.0"`` is ``"1"``, but ``"01"`` is not.

    Tables that went through a data frame carry ``1.0`` for ``1``; codes keep their leading zeros.
    """
    text = text.strip()
    return text.partition(".")[0] if re.fullmatch(r"[+-]?\d+\.0+", text) else text


def as_labels(value: Any) -> Any:
    """Coerce one label or a list of labels to a list of text; YAML's booleans are refused."""
    if value is None:
        return []
    if isinstance(value, str | int | float):
        value = [value]
    if isinstance(value, list | tuple | set):
        return [_as_label(item) for item in value]
    return value  # pydantic reports what is wrong with it


def _as_label(item: Any) -> str:
    if isinstance(item, bool):
        # YAML 1.1 reads yes, no, on, off, true and false as booleans; the table holds the word.
        raise ValueError(
            f"YAML turned a label into {str(item).lower()}: put yes, no, on, off, true and false in quotes"
        )
    if not isinstance(item, str | int | float):
        raise ValueError(f"a label must be text or a number, not {item!r}: put it in quotes")
    return label_key(str(item))


Labels = Annotated[
    list[str], BeforeValidator(as_labels, json_schema_input_type=str | float | list[str | float])
]
"""Labels as they stand in a table; one label may be written without brackets."""


class TableSource(StrictParams):
    """A table on disk: csv, tsv or JSON records (also compressed), xlsx or parquet. A plain path is enough."""

    path: str = Field(min_length=1)
    """Path of the table, relative to the study file."""
    sheet: str | None = None
    """Sheet of an .xlsx workbook; needed where it has more than one."""
    header: int = Field(default=1, ge=1)
    """Row that holds the column names, counted from 1: 3 where two title rows stand above it."""
    encoding: str = "utf-8"
    """Text encoding of a csv or tsv file, for instance cp1252 for exports of older Windows programs; UTF-16 with its
    mark is recognised."""
    decimal: Literal[",", "."] | None = None
    """Decimal mark of its numbers; recognised, and said, if not given."""
    where: dict[str, Labels] = {}
    """Keep only rows whose column holds one of these values; every value must occur."""
    rename: dict[str, str] = {}
    """Column names to change while reading (name in the table: name in the study), before ``where``."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data


# The identity validators tell the JSON schema that a plain path is welcome; the models coerce it themselves.
TableField = Annotated[TableSource, BeforeValidator(lambda v: v, json_schema_input_type=str | TableSource)]


class OmicsSource(TableSource):
    """A matrix of patients x genes."""

    orient: Literal["patients", "genes"] | None = None
    """What a row is; recognised, and said, if not given. With ``genes``, columns are patients or their samples."""
    suffix: str | None = None
    """Keep only columns that end like this, without the ending (PORPOISE: ``_rnaseq``, ``_cnv``)."""
    gene_table: TableField | None = None
    """Table that names of genes are looked up in, so that earlier symbols, aliases and Ensembl ids become today's
    symbols: HGNC's ``hgnc_complete_set.txt``, or one with such columns. Columns that become one gene are added up
    (counts and abundances), averaged (logarithms, z-scores, copy numbers), or 1 where one of them is (mutations)."""
    unknown_genes: Literal["keep", "drop"] = "keep"
    """What becomes of names that ``gene_table`` does not know, or that stand for several genes."""
    kind: ExpressionKind | None = None
    """What RNA values are: ``counts`` of reads, ``tpm`` (or FPKM, CPM), ``log`` of one of them, or ``zscore``. Values
    that contradict it are refused; detected, and said, if not given or ``auto``."""
    log_base: Literal[2, 10, "e"] | None = None
    """Base of the logarithm of ``kind: log``: needed where abundances are, as by most encoders of RNA."""
    pseudocount: float = Field(default=1.0, gt=0)
    """What was added before that logarithm: 1 of log2(TPM + 1), 0.001 in tables of UCSC Xena."""

    @model_validator(mode="after")
    def _rows_are_one_thing(self) -> Self:
        if self.orient == "genes" and (self.suffix is not None or self.where):
            raise ValueError(
                "'suffix' and 'where' choose columns and rows of patients: leave them out, or orient"
            )
        return self

    @model_validator(mode="after")
    def _unknown_to_a_table(self) -> Self:
        if self.unknown_genes == "drop" and self.gene_table is None:
            raise ValueError("'unknown_genes' needs 'gene_table': the table that does not know them")
        return self

    @field_validator("kind", mode="before")
    @classmethod
    def _auto_is_none(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @model_validator(mode="after")
    def _logarithm_is_declared(self) -> Self:
        if self.kind != "log" and (self.log_base is not None or self.pseudocount != 1):
            raise ValueError(
                "'log_base' and 'pseudocount' describe logarithms: write kind: log, or leave them out"
            )
        if self.pseudocount != 1 and self.log_base is None:
            raise ValueError("'pseudocount' needs the base of the logarithm: write log_base: 2 (or e, or 10)")
        return self

    @property
    def base(self) -> float | None:
        """Base of the logarithm as a number."""
        return math.e if self.log_base == "e" else self.log_base


OmicsField = Annotated[OmicsSource, BeforeValidator(lambda v: v, json_schema_input_type=str | OmicsSource)]


class Columns(StrictParams):
    """Which columns hold patient, slide file and resolution; needed where names are not recognised."""

    patient: str | None = None
    """Patient key of the clinical, slides and omics tables."""
    file: str | None = None
    """Slide file in the slides table, with or without its ending."""
    mpp: str | None = None
    """Micrometres per pixel of a slide in the slides table; overrides what the file says."""

    def or_else(self, other: "Columns | None") -> "Columns":
        """These columns, and where one is not given, the other's."""
        if other is None:
            return self
        return Columns(
            patient=self.patient or other.patient, file=self.file or other.file, mpp=self.mpp or other.mpp
        )


class SiteParams(StrictParams):
    """Base of the parameters of site schemes."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the clinical table that the scheme reads."""
        return ()


class CohortSites(SiteParams):
    """The cohort is one site."""


class TssSites(SiteParams):
    """The tissue source site is read from the patient barcode (second field of ``TCGA-AA-3660``)."""


class InstitutionSites(SiteParams):
    """Tissue source site codes are grouped by the institution that a table gives for them."""

    institution: str
    """Table of TCGA tissue source sites with the columns ``TSS Code`` and ``Source Site``."""


class ColumnSites(SiteParams):
    """The site stands in a column of the clinical table."""

    column: str
    """Column of the clinical table."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)


class SiteSource(StrictParams):
    """Where a site comes from: ``cohort``, ``tss``, ``{institution: TABLE}`` or ``{column: NAME}``."""

    scheme: str = "cohort"
    """``cohort``: one site; ``tss``: from the barcode; ``institution``, ``column``: see there; others:
    ``equipoise ls sites``."""
    institution: str | None = None
    """Table of tissue source sites (columns ``TSS Code``, ``Source Site``), relative to the study file."""
    column: str | None = None
    """Column of the clinical table that names the site."""
    params: dict[str, Any] | None = None
    """Parameters of a scheme of another package."""

    @property
    def options(self) -> dict[str, Any]:
        """The parameters of the scheme."""
        named = {"institution": self.institution, "column": self.column}
        return {key: value for key, value in named.items() if value is not None} | (self.params or {})

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"scheme": data}
        if isinstance(data, dict) and "scheme" not in data:
            given = [key for key in ("institution", "column") if data.get(key) is not None]
            return data | {"scheme": given[0]} if given else data
        return data

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        for key in ("institution", "column"):
            value, wanted = getattr(self, key), self.scheme == key
            if wanted and value is None:
                hint = "tcga-institution-sites.csv" if key == "institution" else "SITE"
                raise ValueError(f"site scheme {key!r} needs its {key}: write site: {{{key}: {hint}}}")
            if value is not None and not wanted:
                raise ValueError(
                    f"{key!r} does not belong to site scheme {self.scheme!r}: leave one of the two out"
                )
        return self


SiteField = Annotated[
    SiteSource,
    BeforeValidator(lambda v: v, json_schema_input_type=Literal["cohort", "tss"] | SiteSource),
]


ClinicalField = Annotated[
    Annotated[TableField, Tag("table")] | Annotated[list[TableField], Tag("tables")],
    Discriminator(lambda value: "tables" if isinstance(value, list) else "table"),
]


class CohortSource(StrictParams):
    """One cohort: who is in it, where its slides and omics are, and whether models may learn from it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name in reports and files, for instance TCGA-CRC."""
    role: Literal["develop", "external"]
    """``develop``: training and cross-validation; ``external``: only ever evaluated."""
    clinical: ClinicalField
    """Table with patients as rows: the patient column and the columns of the tasks. Several tables in brackets are
    joined by patient."""
    slides: TableField | None = None
    """Table with slides as rows: patient, file and optionally the resolution. May be the clinical table."""
    slides_dir: str | None = None
    """Folder that the file names are relative to; without it, the folder of the slides table."""
    omics: dict[Modality, OmicsField] = {}
    """Omics matrices by modality."""
    site: SiteField = SiteSource()
    """Where a patient's site comes from."""
    columns: Columns | None = None
    """Column names of this cohort; what is not given here comes from the study's ``columns``."""

    @property
    def clinical_tables(self) -> tuple[TableSource, ...]:
        """The clinical table, or all that are joined."""
        return tuple(self.clinical) if isinstance(self.clinical, list) else (self.clinical,)

    @field_validator("clinical", mode="before")
    @classmethod
    def _some_table(cls, value: Any) -> Any:
        if not value or not isinstance(value, str | dict | list | TableSource):
            raise ValueError("name a table, or several in brackets: clinical: clinical.csv")
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @model_validator(mode="after")
    def _only_rna_has_a_kind(self) -> Self:
        for modality, source in self.omics.items():
            if source.kind is not None and modality != "rna":
                raise ValueError(f"'kind' describes RNA: leave it out of {modality}")
        return self

    @model_validator(mode="after")
    def _slides_dir_needs_slides(self) -> Self:
        if self.slides_dir is not None and self.slides is None:
            raise ValueError("'slides_dir' needs 'slides': a table with the columns PATIENT and FILENAME")
        return self


Folds = Annotated[int, Field(ge=2, le=100)]
Repeats = Annotated[int, Field(ge=1, le=1000)]
Share = Annotated[float, Field(gt=0, lt=1)]


class SplitParams(StrictParams):
    """Base of the parameters of split schemes; the class attributes say what a scheme does."""

    #: No site is in the training and the test part of one fold.
    keeps_sites_whole: ClassVar[bool] = False
    #: The scheme names its patients (``files``), so that others of the study are in no fold.
    names_patients: ClassVar[bool] = False

    inner_val: Share = 0.15
    """Share of the training part that is held out for early stopping and selection."""


class KFoldParams(SplitParams):
    """Patients are assigned to folds, stratified on the main task."""

    folds: Folds = 5
    """Number of folds; every patient is tested once per repeat."""
    repeats: Repeats = 1
    """How often the folds are drawn again."""


class SitePreservedParams(KFoldParams):
    """Whole sites are assigned to folds, so that no site is in training and test part of one fold."""

    keeps_sites_whole: ClassVar[bool] = True


class LeaveOneCohortOutParams(SplitParams):
    """Each development cohort is the test part once."""


class MonteCarloParams(SplitParams):
    """Random stratified test parts, one per repeat."""

    repeats: Repeats = 1
    """Number of splits."""
    test_fraction: Share = 0.2
    """Share of the patients that is tested."""


class FileSplitParams(SplitParams):
    """Folds that are read from files, for instance those of a publication."""

    names_patients: ClassVar[bool] = True

    files: Annotated[
        list[str],
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v, json_schema_input_type=str | list[str]),
    ] = Field(min_length=1)
    """Files, folders or patterns (``splits/splits_*.csv``), relative to the study file."""
    patient: str | None = None
    """Column of a table of assignments that names the patient (or slide), where it is not recognised."""
    fold: str | None = None
    """Column of a table of assignments that names the fold, where it is not recognised."""
    role: str | None = None
    """Column of a table of assignments that says train, val or test, where it is not recognised."""

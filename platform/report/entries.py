"""Sections of the report in their order. Light: nothing heavier than pydantic is imported here.

A section is a function ``(run: RunFiles, params) -> Section | None``; None leaves it out (no survival task,
no external cohort). Other packages add sections through the entry point group ``equipoise.sections``; they
come after the built-in ones.
"""

from pydantic import BaseModel, Field

from equipoise.datasets.params import StrictParams


class SectionParams(StrictParams):
    """Base of the parameters of sections; a section without parameters uses it as it is."""


class FlowParams(SectionParams):
    """Parameters of the participant flow."""

    exclusions: int = Field(default=100, ge=0, le=1000, description="rows of the exclusion list to show")


class QualityParams(SectionParams):
    """Parameters of quality control."""

    thumbnails: int = Field(default=8, ge=0, le=8, description="thumbnails to embed in the page")


class SearchSectionParams(SectionParams):
    """Parameters of the search."""

    trials: int = Field(default=10, ge=1, le=200, description="trials of the leaderboard to show")


class ExplainParams(SectionParams):
    """Parameters of the maps."""

    maps: int = Field(default=8, ge=0, le=24, description="maps to embed in the page")
    tiles: int = Field(
        default=5, ge=0, le=8, description="tiles to show at each end of the first map of a task"
    )
    rows: int = Field(
        default=12, ge=1, le=100, description="rows of the tables of genes and modalities to show"
    )


class ClassificationParams(SectionParams):
    """Parameters of classification."""

    misclassified: int = Field(
        default=10, ge=0, le=200, description="misclassified patients to list for each task"
    )
    thumbnails: int = Field(
        default=4, ge=0, le=20, description="thumbnails of their slides to embed, for the main task"
    )


class LimitsParams(SectionParams):
    """Parameters of failures and limits."""

    failures: int = Field(default=50, ge=0, le=500, description="failed slides to list")


_HOME = "equipoise.platform.report.sections"

SECTIONS: dict[str, tuple[str, type[BaseModel], str]] = {
    "verdict": (
        "main result with intervals, warnings, one sentence",
        SectionParams,
        f"{_HOME}.verdict:build",
    ),
    "flow": ("participant flow, Table 1, exclusions", FlowParams, f"{_HOME}.flow:build"),
    "quality": ("slides, resolution, tiles, thumbnails", QualityParams, f"{_HOME}.quality:build"),
    "splits": ("folds and the leakage audit", SectionParams, f"{_HOME}.splits:build"),
    "training": ("loss and validation metrics over the epochs", SectionParams, f"{_HOME}.training:build"),
    "search": (
        "trials, importance of settings, methods, unseen patients",
        SearchSectionParams,
        f"{_HOME}.search:build",
    ),
    "balancing": (
        "weights, conflicts and cosines of the tasks over the epochs",
        SectionParams,
        f"{_HOME}.balancing:build",
    ),
    "branches": (
        "ratio, coefficient and own score of the branches of a fused model",
        SectionParams,
        f"{_HOME}.branches:build",
    ),
    "classification": (
        "ROC, precision-recall, calibration, net benefit, operating points, errors",
        ClassificationParams,
        f"{_HOME}.classification:build",
    ),
    "regression": ("predicted against measured, r, R², MAE", SectionParams, f"{_HOME}.regression:build"),
    "survival": (
        "Kaplan-Meier by predicted risk, Harrell C, calibration",
        SectionParams,
        f"{_HOME}.survival:build",
    ),
    "external": (
        "external cohorts, sites and subgroups side by side",
        SectionParams,
        f"{_HOME}.external:build",
    ),
    "embeddings": (
        "transfer of embeddings to external cohorts, their robustness across centres",
        SectionParams,
        f"{_HOME}.embeddings:build",
    ),
    "federation": (
        "sites under federated, pooled and local training; costs, traffic, privacy",
        SectionParams,
        f"{_HOME}.federation:build",
    ),
    "explain": (
        "maps of slides and their checks, tiles at both ends, genes, modalities",
        ExplainParams,
        f"{_HOME}.explain:build",
    ),
    "limits": ("failures and limits of the results", LimitsParams, f"{_HOME}.limits:build"),
    "methods": (
        "methods paragraph and Table 1 to paste",
        SectionParams,
        f"{_HOME}.methods:build",
    ),
    "checklists": (
        "TRIPOD+AI and STARD-AI filled from the run",
        SectionParams,
        f"{_HOME}.checklists:build",
    ),
    "provenance": ("commands, environment, input hashes", SectionParams, f"{_HOME}.provenance:build"),
}

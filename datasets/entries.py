"""Registry entries of data: split schemes, site schemes, built-in cohorts. Light: no pandas."""

from pydantic import BaseModel

from equipoise.datasets.params import (
    CohortSites,
    ColumnSites,
    FileSplitParams,
    InstitutionSites,
    KFoldParams,
    LeaveOneCohortOutParams,
    MonteCarloParams,
    SitePreservedParams,
    TssSites,
)
from equipoise.datasets.synthetic.entries import PRESETS

__all__ = ["PRESETS", "SITES", "SPLITS"]

SPLITS: dict[str, tuple[str, type[BaseModel], str]] = {
    "kfold": (
        "patients assigned to folds, stratified on the main task",
        KFoldParams,
        "equipoise.datasets.cohorts.splits:kfold",
    ),
    "site_preserved": (
        "whole sites assigned to folds: no site is trained on and tested (Howard 2021)",
        SitePreservedParams,
        "equipoise.datasets.cohorts.splits:site_preserved",
    ),
    "leave_one_cohort_out": (
        "each development cohort is the test part once",
        LeaveOneCohortOutParams,
        "equipoise.datasets.cohorts.splits:leave_one_cohort_out",
    ),
    "monte_carlo": (
        "random stratified test parts, one per repeat",
        MonteCarloParams,
        "equipoise.datasets.cohorts.splits:monte_carlo",
    ),
    "file": (
        "folds of a publication, read from files (PORPOISE, MCAT, SurvPath, CLAM, STAMP or a plain table)",
        FileSplitParams,
        "equipoise.datasets.cohorts.published_folds:from_files",
    ),
}

SITES: dict[str, tuple[str, type[BaseModel], str]] = {
    "cohort": ("the whole cohort is one site", CohortSites, "equipoise.datasets.cohorts.sites:by_cohort"),
    "tss": (
        "tissue source site: second field of a TCGA-like barcode",
        TssSites,
        "equipoise.datasets.cohorts.sites:by_tss",
    ),
    "institution": (
        "institution of the tissue source site, through a table of codes",
        InstitutionSites,
        "equipoise.datasets.cohorts.sites:by_institution",
    ),
    "column": (
        "a column of the clinical table",
        ColumnSites,
        "equipoise.datasets.cohorts.sites:by_column",
    ),
}

"""Templates of study files, as entries of the registry."""

from typing import ClassVar

from equipoise.datasets.params import StrictParams


class TemplateParams(StrictParams):
    """Templates have no parameters; they are filled in from the tables."""

    #: The function takes :class:`~equipoise.platform.study.table_scan.Hints` after tables and file: what the command
    #: line says about the tables, and how a draft is checked before it is written.
    takes_hints: ClassVar[bool] = False


class DraftedTemplateParams(TemplateParams):
    """A template that is drafted from tables and checked."""

    takes_hints: ClassVar[bool] = True


TEMPLATES = {
    "biomarker": (
        "a biomarker with auxiliary regression targets; site-preserved folds where barcodes name sites",
        DraftedTemplateParams,
        "equipoise.platform.study.draft:biomarker",
    ),
    "survival": (
        "overall survival, from slides or tables; site-preserved folds where barcodes name sites",
        DraftedTemplateParams,
        "equipoise.platform.study.draft:survival",
    ),
}

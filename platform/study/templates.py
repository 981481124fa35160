"""Templates of study files, as entries of the registry."""

from equipoise.datasets.params import StrictParams


class TemplateParams(StrictParams):
    """Templates have no parameters; they are filled in from the tables."""


TEMPLATES = {
    "biomarker": (
        "a biomarker with auxiliary regression targets; site-preserved folds where barcodes name sites",
        TemplateParams,
        "equipoise.platform.study.draft:biomarker",
    ),
    "survival": (
        "overall survival from slides; site-preserved folds where barcodes name sites",
        TemplateParams,
        "equipoise.platform.study.draft:survival",
    ),
}

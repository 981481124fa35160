"""Templates of study files, as entries of the registry."""

from pydantic import BaseModel, ConfigDict


class TemplateParams(BaseModel):
    """Templates have no parameters; they are filled in from the tables."""

    model_config = ConfigDict(extra="forbid")


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

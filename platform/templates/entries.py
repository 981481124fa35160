"""Templates of study files; each is a YAML file beside this one with places to fill in."""

from pydantic import BaseModel, ConfigDict


class TemplateParams(BaseModel):
    """Templates take nothing but what is found in the tables."""

    model_config = ConfigDict(extra="forbid")


TEMPLATES = {
    "biomarker": (
        "a biomarker with auxiliary regression targets; site-preserved folds where barcodes name sites",
        TemplateParams,
        "equipoise.platform.templates.draft:biomarker",
    ),
    "survival": (
        "overall survival from slides; site-preserved folds where barcodes name sites",
        TemplateParams,
        "equipoise.platform.templates.draft:survival",
    ),
}

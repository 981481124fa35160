"""Who the clients are and how the federation is judged: ``federation.sites`` and ``federation.evaluation``. Light."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from equipoise.datasets.specs import Spec

#: Schemes that group tissue source site codes by a column of a table.
BY_TABLE = ("institution", "region")
#: Schemes whose small clients are merged; cohorts are named by the author of the study, controls are drawn.
MERGED = ("site", "tss", "institution", "region")


class ClientScheme(Spec):
    """Which patients belong to which client."""

    scheme: Literal["cohort", "institution", "tss", "region", "site", "iid", "dirichlet"] = "cohort"
    """``cohort``; ``institution`` and ``region`` of the TCGA tissue source site through ``table``; ``tss``, the code
    itself; ``site``, what the cohorts' ``site:`` says; controls: ``iid`` and ``dirichlet`` (skewed labels)."""
    table: str | None = None
    """Table of tissue source sites, relative to the study file: ``TSS Code`` and ``Source Site``, or for regions
    ``column``."""
    column: str = "Region"
    """Column of ``table`` that names the region."""
    min_patients: int = Field(default=20, ge=1)
    """Sites with fewer development patients are merged."""
    merge: Literal["other", "region"] = "other"
    """Where small sites go: together, or to the others of their region (``table`` with ``column``)."""
    guard: Literal["patients", "institutions"] = "patients"
    """What may not stand on two sides. Patients never may; ``institutions`` also refuses a hospital of two clients,
    or of a client and an external cohort."""
    clients: int = Field(default=6, ge=2, le=10_000)
    """Number of clients (``iid``, ``dirichlet``)."""
    alpha: float = Field(default=0.5, gt=0)
    """Concentration of ``dirichlet``: small is skewed, large is ``iid``."""

    @model_validator(mode="before")
    @classmethod
    def _in_short(cls, data: Any) -> Any:
        return {"scheme": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _has_its_table(self) -> Self:
        if self.table is None and (self.scheme in BY_TABLE or self.merge == "region"):
            what = self.scheme if self.scheme in BY_TABLE else "merge: region"
            raise ValueError(
                f"{what} needs a table of tissue source sites: write table: tissueSourceSite.tsv"
            )
        if self.merge == "region" and self.scheme not in ("site", "tss", "institution"):
            raise ValueError(f"scheme {self.scheme!r} has no small sites to merge by region")
        return self


Plan = Literal["folds", "leave_one_site_out", "leave_one_cohort_out"]


class PlanParams(Spec):
    """What is trained and on whom it is judged. Pooled, local and ensemble always stand beside the federation."""

    plans: list[Plan] = Field(default=["folds"], min_length=1)
    """``folds``: those of ``splits``, every client with training, inner validation and test patients;
    ``leave_one_site_out``: each client is the test part once; ``leave_one_cohort_out``: each development cohort is.
    External cohorts are predicted in the plan ``folds``."""
    folds: int | None = Field(default=None, ge=1)
    """So many folds of each plan, the first ones; all of them if not given."""
    clean_costs: bool = True
    """Show what each aggregation rule costs where nobody attacks; one further round of local training."""

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len(set(self.plans)) < len(self.plans):
            raise ValueError("evaluation.plans names a plan twice")
        return self

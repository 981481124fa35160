"""Client schemes that a study can name (``federation.sites``): who the clients are. Light: pydantic only.

A scheme is a function ``(develop, scheme, tasks, base, seed)`` of the table of development patients, the section
``federation.sites`` (with ``params`` for a scheme of another package), the tasks, the folder of the study and a seed.
It returns the name of a client for every row, and remarks.
"""

from typing import ClassVar

from pydantic import BaseModel

from equipoise.datasets.params import StrictParams


class ClientSchemeParams(StrictParams):
    """Base of the parameters of client schemes; the class attributes say what a scheme needs and makes."""

    #: ``sites.table`` is needed: it groups tissue source sites.
    needs_table: ClassVar[bool] = False
    #: ``sites.table`` names the region of a tissue source site, not its institution.
    table_names_regions: ClassVar[bool] = False
    #: Clients are real sites, and those with few patients are merged; named or drawn clients stay as they are.
    merges_small_sites: ClassVar[bool] = False
    #: Small sites can be merged with those of their region (``merge: region``).
    merges_by_region: ClassVar[bool] = False


class SiteClientParams(ClientSchemeParams):
    """Clients are sites of the cohorts, or tissue source sites."""

    merges_small_sites: ClassVar[bool] = True
    merges_by_region: ClassVar[bool] = True


class InstitutionClientParams(SiteClientParams):
    """Clients are institutions of tissue source sites."""

    needs_table: ClassVar[bool] = True


class RegionClientParams(ClientSchemeParams):
    """Clients are regions of tissue source sites."""

    needs_table: ClassVar[bool] = True
    table_names_regions: ClassVar[bool] = True
    merges_small_sites: ClassVar[bool] = True


_HERE = "equipoise.platform.federation.simulation.sites"

CLIENT_SCHEMES: dict[str, tuple[str, type[BaseModel], str]] = {
    "cohort": ("each cohort is a client", ClientSchemeParams, f"{_HERE}:by_cohort"),
    "site": ("each site of the cohorts (`site:`) is a client", SiteClientParams, f"{_HERE}:by_site"),
    "tss": ("each tissue source site of the barcodes is a client", SiteClientParams, f"{_HERE}:by_tss"),
    "institution": (
        "institutions of tissue source sites, through a table",
        InstitutionClientParams,
        f"{_HERE}:by_institution",
    ),
    "region": (
        "regions of tissue source sites, through a table",
        RegionClientParams,
        f"{_HERE}:by_region",
    ),
    "iid": ("control: patients assigned at random", ClientSchemeParams, f"{_HERE}:iid"),
    "dirichlet": (
        "control: clients with skewed labels (Hsu et al. 2019)",
        ClientSchemeParams,
        f"{_HERE}:dirichlet",
    ),
}

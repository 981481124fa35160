"""The executor that an NVFlare job names: a site that reads its own file."""

from __future__ import annotations

from equipoise.platform.federation.nvflare.executor import BaseSiteExecutor
from equipoise.platform.federation.remote.job import RemoteJob
from equipoise.platform.federation.remote.site import SiteData
from equipoise.platform.run.federated_site import read_site


class SiteExecutor(BaseSiteExecutor):
    """Reads the data that the file of the site names."""

    def read(self, site: str, job: RemoteJob) -> SiteData:
        """The patients of the site."""
        return read_site(site, job)

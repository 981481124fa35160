"""Parameters of ``resources:`` in a study. Light: pydantic only."""

import re

from pydantic import Field, field_validator

from equipoise.datasets.params import StrictParams

_ADDRESS = re.compile(r"(ray://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}")


class RayOptions(StrictParams):
    """Where Ray runs and how much of the machine it may use.

    ``address``, ``workers``, ``gpus_per_worker`` and ``folds`` apply to every Ray, the others to one that is started
    here; an existing cluster keeps its own settings.
    """

    address: str = "auto"
    """auto (the cluster of a submitted job, else RAY_ADDRESS, else local), local, HOST:PORT or ray://HOST:PORT."""
    cpus: int | None = Field(default=None, ge=1)
    """CPUs of a local Ray; default: all."""
    gpus: int | None = Field(default=None, ge=0)
    """GPUs of a local Ray; default: all that are visible."""
    object_store_mb: int | None = Field(default=None, ge=100)
    """Object store of a local Ray in MiB; default: 30 % of memory, at most 2048."""
    dashboard: bool = True
    """Dashboard of a local Ray, on 127.0.0.1 and a free port."""
    workers: int | None = Field(default=None, ge=1)
    """Maximum number of encoder workers; default: the number of CPUs or GPUs at the start. Set it on an autoscaling
    cluster, so that the pool can grow."""
    gpus_per_worker: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU for each encoder worker: with 0.5 two share one. Default: what the encoder is meant for. A share
    bounds how many start on a GPU, not the memory that they take there."""
    folds: int = Field(default=1, ge=1)
    """Folds trained at once, each in a separate process; 1 trains them in this process, one after another."""

    @field_validator("address")
    @classmethod
    def _known_form(cls, address: str) -> str:
        port = address.rpartition(":")[2]
        known = _ADDRESS.fullmatch(address) and 0 < int(port) < 65536
        if address not in ("auto", "local") and not known:
            raise ValueError(f"{address!r} is none of auto, local, HOST:PORT, ray://HOST:PORT")
        return address

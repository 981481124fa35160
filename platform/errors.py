"""Errors of the platform; the base and ``DataError`` come from :mod:`equipoise.datasets.errors`.

Exit codes: 0 ok, 1 run error, 2 usage or study file, 3 data, 4 environment or resources, 5 finished with failures
above the tolerance.
"""

import errno

from equipoise.datasets.errors import DataError, DataWarning, EquipoiseError

__all__ = [
    "DataError",
    "DataWarning",
    "EquipoiseError",
    "FederationError",
    "ResourceError",
    "StudyError",
    "ToleranceError",
    "is_full_disk",
]


class StudyError(EquipoiseError):
    """A study file or command line that cannot be used (exit code 2)."""

    exit_code = 2


class ResourceError(EquipoiseError):
    """Something the machine or cluster lacks: memory, disk, a token, weights (exit code 4)."""

    exit_code = 4


class FederationError(EquipoiseError):
    """A federation that cannot go on (exit code 1)."""


class ToleranceError(EquipoiseError):
    """Work finished, but more of it failed than the study tolerates (exit code 5)."""

    exit_code = 5


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that no space is left: what was being done is not at fault, and can be done again."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)

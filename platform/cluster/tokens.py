"""Token authentication of Ray: always on, its mode always explicit.

Ray's own defaults differ between ``ray.init``, ``ray start`` and a connection by address, and its first local
start writes a token into the home folder. Here the mode is set before Ray reads it, and a local Ray without a
configured token gets a fresh one that lives as long as the session.
"""

import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from equipoise.platform.errors import ResourceError

logger = logging.getLogger(__name__)


def local_authentication(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a local Ray: token mode, and a fresh token if none is configured.

    Raises
    ------
    ResourceError
        If a token file is named that cannot be read.
    """
    if token_source(environ):
        return {"RAY_AUTH_MODE": "token"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def cluster_authentication(environ: Mapping[str, str], address: str) -> dict[str, str]:
    """The environment variables for connecting to a cluster; a token is never generated.

    Raises
    ------
    ResourceError
        If no token is configured and the user did not say that the cluster has none.
    """
    if environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        logger.warning("RAY_AUTH_MODE=disabled: connecting to %s without a token", address)
        return {}
    if token_source(environ):
        return {"RAY_AUTH_MODE": "token"}
    raise ResourceError(
        "no token for this cluster",
        where=f"Ray at {address}",
        fix="set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or RAY_AUTH_TOKEN to the token; "
        "a cluster that really has none needs RAY_AUTH_MODE=disabled",
    )


def token_source(environ: Mapping[str, str]) -> str | None:
    """Where the user's token is stored, in Ray's order of precedence; None if there is none.

    Raises
    ------
    ResourceError
        If ``RAY_AUTH_TOKEN_PATH`` names a file that cannot be read.
    """
    if environ.get("RAY_AUTH_TOKEN", "").strip():
        return "RAY_AUTH_TOKEN"
    if named := environ.get("RAY_AUTH_TOKEN_PATH"):
        if not Path(named).is_file() or not os.access(named, os.R_OK):
            raise ResourceError(
                "the token file cannot be read",
                where=f"RAY_AUTH_TOKEN_PATH={named}",
                fix="correct the path, or unset the variable",
            )
        return named
    default = Path(environ.get("HOME") or Path.home(), ".ray", "auth_token")
    return str(default) if default.is_file() else None


def refresh() -> None:
    """Make Ray read mode and token again: it caches both when it is imported."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()

"""Addresses of files elsewhere: ``protocol://path``, as fsspec knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from equipoise.datasets.errors import DataError
from equipoise.datasets.redaction import CREDENTIALS_FIX, has_credentials

#: Protocol → the extra of this package that brings its driver.
_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
}


def is_remote(path: str | Path) -> bool:
    """Whether this is an address; a plain path is none.

    >>> is_remote("s3://bucket/a.svs"), is_remote("/slides/a.svs"), is_remote("file:///share/a.svs")
    (True, False, True)
    """
    return isinstance(path, str) and "://" in path


def refuse_credentials(address: str, where: str) -> None:
    """Addresses are written into manifests, stores and reports, where credentials do not belong.

    Raises
    ------
    DataError
        If the address holds a password, a key or a signature; they are masked in the message.
    """
    if has_credentials(address):
        raise DataError(f"the address {address} holds credentials", where=where, fix=CREDENTIALS_FIX)


def connect(address: str) -> tuple[Any, str]:
    """The file system of an address, without cached listings, and the path in it.

    Raises
    ------
    DataError
        If the protocol is unknown, its driver is not installed, or the address holds credentials.
    """
    refuse_credentials(address, "address of a file")
    from fsspec.core import url_to_fs

    protocol = address.split("::", 1)[0].split("://", 1)[0]
    try:
        # Drivers remember listings: what another machine has written since would not be there.
        return url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        package = f"-e '.[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else "the package that it names"
        raise DataError(
            f"{protocol}:// needs a driver that is not installed ({error})",
            where=address,
            fix=f"pip install {package}",
        ) from error
    except ValueError as error:
        raise DataError(
            f"cannot be opened: {error}",
            where=address,
            fix="write s3://bucket/path, gs://bucket/path, file:///path, or a plain path",
        ) from error


def join(address: str, *parts: str) -> str:
    """An address below another one.

    >>> join("s3://bucket/features/", "uni", "store.json")
    's3://bucket/features/uni/store.json'
    """
    return "/".join([address.rstrip("/"), *parts])

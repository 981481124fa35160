"""Addresses of files elsewhere: ``protocol://path``, as fsspec knows them."""

from __future__ import annotations

from collections.abc import Iterable
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
#: Protocols whose paths begin with a bucket.
_BUCKETS = (*_EXTRAS, "abfs", "az")


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


def require_answers(addresses: Iterable[str]) -> None:
    """Ask every place (server and bucket) for one file, before thousands of files are asked for one by one.

    A file that is missing or may not be read is no concern of this check: others beside it may be there.

    Parameters
    ----------
    addresses
        Paths and addresses; plain paths are left alone.

    Raises
    ------
    DataError
        If nothing answers at a place, there is no such bucket, or the machine has no credentials for it.
    """
    places: dict[str, str] = {}
    for address in addresses:
        if is_remote(address):
            places.setdefault(_place(address), address)
    for place, address in places.items():
        fs, path = connect(address)
        try:
            _ask(fs, path, place)
        except DataError:
            raise
        except PermissionError:
            continue
        except Exception as error:  # drivers have exceptions of their own
            raise DataError(
                f"does not answer: {type(error).__name__}: {error}",
                where=place,
                fix="check network, endpoint (AWS_ENDPOINT_URL for a server of your own) and credentials",
            ) from error


def _place(address: str) -> str:
    """Server and bucket of an address, for messages: ``s3://bucket``."""
    protocol, _, rest = address.partition("://")
    return f"{protocol}://{rest.partition('/')[0]}"


def _ask(fs: Any, path: str, place: str) -> None:
    try:
        fs.info(path)
    except FileNotFoundError:
        protocol = place.partition("://")[0]
        if protocol in _BUCKETS and not _has_bucket(fs, path.partition("/")[0]):
            raise no_bucket(place) from None


def _has_bucket(fs: Any, bucket: str) -> bool:
    try:
        fs.ls(bucket)
    except FileNotFoundError:
        return False
    except PermissionError:  # it is there, and its list is not for everybody
        return True
    return True


def no_bucket(place: str) -> DataError:
    """The error of an address whose bucket does not exist."""
    return DataError(
        "there is no such bucket",
        where=place,
        fix="check its name and region, or make it first: Equipoise makes folders, not buckets",
    )

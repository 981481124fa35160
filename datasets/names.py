"""Names that become parts of paths: what is accepted, and how free text is written as a file name."""

from __future__ import annotations

import hashlib
import re

#: Names that users give and that become folders: no separator, no leading dot, nothing that a shell or a file system
#: reads in its own way.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

#: Longest accepted name in characters; file systems take 255 bytes, and endings are added.
MAX_NAME = 128

_MAX_BYTES = 180


def require_name(name: str, what: str) -> str:
    """The name, if it can be a part of a path.

    Parameters
    ----------
    name
        As a user, a file or another package gives it.
    what
        What has this name, for the message.

    Raises
    ------
    ValueError
        If it has other characters than letters, digits, ``.``, ``_`` and ``-``, does not begin with a letter or digit,
        or is too long. ``../x`` would leave the folder that it is used in.
    """
    if len(name) > MAX_NAME or not re.fullmatch(NAME_PATTERN.strip("^$"), name):
        proposal = plain_name(name)
        raise ValueError(
            f"{what} {name[:MAX_NAME]!r} becomes a part of a path: letters, digits, '.', '_' and '-' only, the "
            f"first a letter or digit, at most {MAX_NAME} characters"
            + (f"; for instance {proposal!r}" if proposal else "")
        )
    return name


def plain_name(text: str) -> str:
    """The nearest name that :func:`require_name` accepts; empty if nothing is left.

    >>> plain_name("org/uni v2"), plain_name("../x"), plain_name("...")
    ('org_uni_v2', 'x', '')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:MAX_NAME]


def file_stem(name: str) -> str:
    """Any name of a slide as the stem of a file: ``/`` becomes ``__``, what cannot be written becomes ``_``.

    Names of dots alone, which mean a folder and the one above it, are written in ``_``.

    >>> file_stem("CRC/A-3"), file_stem("../../etc/x"), file_stem("..")
    ('CRC__A-3', '..__..__etc__x', '__')
    """
    readable = "".join(letter if letter.isprintable() else "_" for letter in name.replace("/", "__"))
    if len(encoded := readable.encode("utf-8", "replace")) > _MAX_BYTES:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        readable = f"{encoded[:_MAX_BYTES].decode('utf-8', 'ignore')}-{digest}"
    return readable if readable.strip(".") else "_" * max(1, len(readable))

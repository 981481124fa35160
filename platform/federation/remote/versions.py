"""Versions on which the bits of a training depend."""

from importlib.metadata import version

#: Packages whose version the server is told when a site joins.
PACKAGES = ("torch", "numpy")


def versions() -> dict[str, str]:
    """Package → version, of this process."""
    from equipoise import __version__

    return {"equipoise": __version__} | {name: version(name) for name in PACKAGES}

"""The folder of a site: its secret, its state after each accepted request, and what it predicts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from equipoise.datasets.atomic_io import atomic_path
from equipoise.platform.errors import FederationError

#: Names of states: what the engine makes of seed, round and client.
_NAME = re.compile(r"[0-9a-f]{32}")


class StateFolder:
    """States of one federation, each under the identifier of the request that made it.

    Parameters
    ----------
    root
        Folder of the site.
    federation
        Identifier of the federation.
    keep
        Number of states kept beside the one in use.
    """

    def __init__(self, root: Path, federation: str, *, keep: int) -> None:
        self.root, self.folder, self.keep = root, root / federation, keep

    def secret(self) -> int:
        """A random number that only this site knows; made on first use."""
        path = self.root / "secret"
        self.root.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with atomic_path(path) as partial:
                descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(os.urandom(16))
        return int.from_bytes(path.read_bytes(), "big")

    def has(self, name: str) -> bool:
        """Whether the site has this state."""
        return self._path(name).is_file()

    def load(self, name: str) -> bytes:
        """The state; nothing for an empty name, the state before the first request.

        Raises
        ------
        FederationError
            If the site does not have it.
        """
        if not name:
            return b""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            raise FederationError(
                f"this site does not have its state {name}",
                fix="restore the folder of the site, or start the federation again",
            ) from None

    def save(self, name: str, state: bytes, *, used: str) -> None:
        """Keep a new state; older ones than the last few are deleted, but for the one that was used."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            partial.write_bytes(state)
        others = [file for file in path.parent.glob("*.state") if file.stem not in (name, used)]
        for old in sorted(others, key=lambda file: file.stat().st_mtime_ns)[: -self.keep or None]:
            old.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise FederationError(f"{name!r} is no name of a state")
        return self.folder / "states" / f"{name}.state"

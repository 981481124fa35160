"""The folder of a feature store: here, or at an address with a mirror on this machine.

A remote folder is read file by file into the mirror, where shards are mapped into memory, and written file by file:
complete in the mirror first, then uploaded. Object storage shows a file when all of it has arrived; ``file://``
gets it by rename. The mirror belongs to the address; losing it costs another copy and nothing else.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from equipoise.datasets.atomic_io import TEMPORARY_PREFIX, TEMPORARY_SUFFIX, atomic_path, remove_leftovers
from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.addresses import connect, is_remote, join, no_bucket
from equipoise.datasets.remote.cache import cache_root

#: File systems that show a file while it is being written.
_SHOWS_PARTIAL_FILES = ("file", "local")
#: File systems that compare and write in one request.
_COMPARES = ("s3", "s3a")
#: File systems of one machine, where a lock of the kernel keeps a second writer away.
_ONE_MACHINE = ("file", "local", "memory")


class Folder(Protocol):
    """Files by names with ``/``; small, compared by location, safe to send to workers."""

    @property
    def address(self) -> str:
        """For messages and for opening it again."""
        ...

    @property
    def path(self) -> Path:
        """Where its files are on this machine."""
        ...

    def child(self, name: str) -> Folder:
        """A folder below."""
        ...

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        ...

    def read(self, name: str) -> bytes | None:
        """The file as it is now; ``None`` if there is none."""
        ...

    def fetch(self, name: str) -> Path:
        """Path of the file on this machine, for files that never change; nothing is there if the folder has none."""
        ...

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary path to write a file to; the finished file is in the folder when the block ends."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        ...

    def send(self, file: Path, name: str) -> None:
        """Upload a file of this machine; does nothing for a local folder or a file that does not exist."""
        ...

    def replace(self, name: str, content: bytes, before: bytes | None) -> bool:
        """Write a file if it still is what it was before (None: absent); whether it was, and is written now.

        Nobody can write in between where the folder is local and its lock is held, and at ``s3://``, which compares and
        writes in one request. Other addresses compare first and write then.
        """
        ...

    def drop_copy(self, name: str) -> None:
        """Remove the copy on this machine; does nothing for a local folder."""
        ...

    def remove_leftovers(self) -> None:
        """Remove what dead writers left half-written in a local folder; only its one writer may ask for it."""
        ...

    def names(self, below: str) -> list[str]:
        """Files of a folder below, partial ones too, in order; empty if there is no such folder."""
        ...


def folder_at(location: str | Path) -> Folder:
    """The folder of a path or of an address."""
    if isinstance(location, str) and is_remote(location):
        return RemoteFolder(location.rstrip("/"))
    return LocalFolder(Path(location))


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine, or of a file system that all machines mount."""

    path: Path

    @property
    def address(self) -> str:
        return str(self.path)

    def child(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def read(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return (self.path / name).read_bytes()
        return None

    def fetch(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with atomic_path(self.path / name) as temporary:
            yield temporary

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def send(self, file: Path, name: str) -> None:
        pass

    def replace(self, name: str, content: bytes, before: bytes | None) -> bool:
        if self.read(name) != before:
            return False
        with self.writing(name) as temporary:
            temporary.write_bytes(content)
        return True

    def drop_copy(self, name: str) -> None:
        pass

    def remove_leftovers(self) -> None:
        remove_leftovers(self.path, below=True)

    def names(self, below: str) -> list[str]:
        folder = self.path / below
        return sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at an address."""

    address: str

    @property
    def path(self) -> Path:
        """The mirror; each machine decides where it is."""
        name = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        return cache_root() / "stores" / name

    def child(self, name: str) -> RemoteFolder:
        return RemoteFolder(join(self.address, name))

    def require_single_writer(self) -> None:
        """Refuse a place where two writers could not be told apart.

        Raises
        ------
        DataError
            If :meth:`replace` cannot compare and write in one request there.
        """
        fs, _ = self._resolve("")
        if _protocol(fs) not in (*_COMPARES, *_ONE_MACHINE):
            raise DataError(
                f"writes to {_protocol(fs)}:// have no condition here, so two jobs could write at the same time",
                where=self.address,
                fix="use s3://, or a folder that the machines mount; slides and feature stores may stay there",
            )

    def has(self, name: str) -> bool:
        fs, path = self._resolve(name)
        with _driver_errors(self.address):  # not fs.exists, which takes every error for absence
            try:
                return bool(fs.info(path))
            except FileNotFoundError:
                return False

    def read(self, name: str) -> bytes | None:
        fs, path = self._resolve(name)
        with _driver_errors(self.address):
            try:
                return bytes(fs.cat_file(path))
            except FileNotFoundError:
                return None

    def fetch(self, name: str) -> Path:
        here = self.path / name
        if here.exists():
            return here
        fs, path = self._resolve(name)
        with _driver_errors(self.address), suppress(FileNotFoundError):
            size = int(fs.info(path)["size"])
            with atomic_path(here) as temporary:
                fs.get_file(path, str(temporary))
                if temporary.stat().st_size != size:
                    raise OSError(f"{temporary.stat().st_size} of {size} bytes of {name} arrived")
        return here

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with atomic_path(self.path / name) as temporary:
            yield temporary
        self.send(self.path / name, name)

    def send(self, file: Path, name: str) -> None:
        if not file.exists():
            return
        fs, path = self._resolve(name)
        with _writing_errors(self.address), _driver_errors(self.address):
            if _protocol(fs) in _SHOWS_PARTIAL_FILES:
                parent, _, last = path.rpartition("/")
                temporary = f"{parent}/{TEMPORARY_PREFIX}{last}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
                fs.makedirs(parent, exist_ok=True)
                fs.put_file(str(file), temporary)
                fs.mv(temporary, path)
            else:
                fs.put_file(str(file), path)

    def send_all(self, files: Mapping[str, Path]) -> None:
        """Upload many files, at the same time where the driver can; each may be seen before it is complete."""
        if not files:
            return
        fs, path = self._resolve("")
        with _writing_errors(self.address), _driver_errors(self.address):
            if _protocol(fs) in _SHOWS_PARTIAL_FILES:
                for parent in {join(path, name).rpartition("/")[0] for name in files}:
                    fs.makedirs(parent, exist_ok=True)
            fs.put([str(file) for file in files.values()], [join(path, name) for name in files])

    def receive_all(self, files: Mapping[str, Path]) -> None:
        """Copy many files to paths of this machine, at the same time where the driver can.

        Raises
        ------
        FileNotFoundError
            If one of them is not there.
        """
        if not files:
            return
        for target in files.values():
            target.parent.mkdir(parents=True, exist_ok=True)
        fs, path = self._resolve("")
        with _driver_errors(self.address):
            fs.get([join(path, name) for name in files], [str(target) for target in files.values()])

    def remove_all(self, names: Sequence[str]) -> None:
        """Remove many files; one that is not there is no error."""
        if not names:
            return
        fs, path = self._resolve("")
        with _driver_errors(self.address), suppress(FileNotFoundError):
            fs.rm([join(path, name) for name in names])

    def replace(self, name: str, content: bytes, before: bytes | None) -> bool:
        fs, path = self._resolve(name)
        conditional = _protocol(fs) in _COMPARES
        tag = self._tag(name) if conditional else None
        if self.read(name) != before:
            return False
        if not conditional:
            with self.writing(name) as temporary:
                temporary.write_bytes(content)
            return True
        # The tag was read before the content: whoever has written since has changed it, and the server refuses.
        condition = {"IfNoneMatch": "*"} if before is None else {"IfMatch": tag}
        with _writing_errors(self.address), _driver_errors(self.address):
            try:
                fs.pipe_file(path, content, chunksize=len(content) + 1, **condition)
            except Exception as error:
                if (
                    "PreconditionFailed" in f"{error!r}{error.__cause__!r}"
                    or "pre-condition" in str(error).lower()
                ):
                    return False
                raise
        with atomic_path(self.path / name) as temporary:
            temporary.write_bytes(content)
        return True

    def remove(self, name: str) -> None:
        self.drop_copy(name)
        fs, path = self._resolve(name)
        with _driver_errors(self.address), suppress(FileNotFoundError):
            fs.rm_file(path)

    def drop_copy(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        pass  # other processes of this machine fetch into the mirror meanwhile

    def names(self, below: str) -> list[str]:
        fs, path = self._resolve(below)
        with _driver_errors(self.address):
            try:
                listed: list[dict[str, Any]] = fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        files = (str(one["name"]).rsplit("/", 1)[-1] for one in listed if one["type"] == "file")
        return sorted(name for name in files if name)

    def _tag(self, name: str) -> str | None:
        """What the server calls this version of a file; None if there is none."""
        fs, path = self._resolve(name)
        with _driver_errors(self.address):
            try:
                return str(fs.info(path)["ETag"])
            except FileNotFoundError:
                return None

    def _resolve(self, name: str) -> tuple[Any, str]:
        return connect(join(self.address, name))


def _protocol(fs: Any) -> str:
    return fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]


@contextmanager
def _driver_errors(address: str) -> Iterator[None]:
    """Turn what a driver raises into an error that names the address; absent files are left to the caller."""
    try:
        yield
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:  # drivers have exceptions of their own
        raise DataError(
            f"{type(error).__name__}: {error}",
            where=address,
            fix="check that this machine may read and write there (credentials, network, space)",
        ) from error


@contextmanager
def _writing_errors(address: str) -> Iterator[None]:
    """What a driver does not find while it writes is the bucket."""
    try:
        yield
    except FileNotFoundError as error:
        raise no_bucket(address) from error

"""Reads ``.h5`` files in a process of their own: whatever a file does to the HDF5 library is a reason, not a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError

Layout = Literal["stamp", "trident"]

_SERVER = "equipoise.datasets.store.h5_server"


@dataclass(frozen=True)
class H5Header:
    """What a file says before its values are read.

    Attributes
    ----------
    layout
        Whose file it is.
    tiles, dim
        Number of tiles and length of a vector.
    attributes
        Numbers and texts by name, as they stand in the file.
    """

    layout: Layout
    tiles: int
    dim: int
    attributes: dict[str, Any]


class H5Reader:
    """Opens files, one after another, in a process that may die; use as a context manager.

    The process is started with the first file and again after it died.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def header(self, path: Path, layout: Layout | Literal["auto"] = "auto") -> H5Header:
        """Shape and attributes of a file; no feature is read.

        Parameters
        ----------
        path
            The file.
        layout
            Whose it must be; ``auto``: whose it is, by the name of its features.

        Raises
        ------
        DataError
            If it cannot be read; says why.
        """
        return self._ask(path, layout, values=False)

    def values(
        self, path: Path, layout: Layout | Literal["auto"] = "auto"
    ) -> tuple[H5Header, NDArray[np.float16], NDArray[np.float64]]:
        """As :meth:`header`, with features float16 ``[N, D]`` and coordinates float64 ``[N, 2]`` as they are stored.

        A number that float16 cannot hold is infinite.
        """
        header = self._ask(path, layout, values=True)
        features = np.empty((header.tiles, header.dim), np.float16)
        coords = np.empty((header.tiles, 2), np.float64)
        for array in (features, coords):
            self._receive(path, array)
        return header, features, coords

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> H5Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, path: Path, layout: str, values: bool) -> H5Header:
        if not path.is_file():  # a pipe or a device would never end
            raise DataError("is no regular file" if path.exists() else "no such file", where=str(path))
        request, answers = self._streams()
        try:
            request.write(
                json.dumps({"path": str(path), "layout": layout, "values": values}).encode() + b"\n"
            )
            request.flush()
        except BrokenPipeError:
            raise self._died(path) from None
        answer = self._answer(path, answers)
        return H5Header(answer["layout"], answer["tiles"], answer["dim"], answer["attributes"])

    def _receive(self, path: Path, array: NDArray[Any]) -> None:
        """Fill an array with frames."""
        answers = self._streams()[1]
        target, at = array.reshape(-1).view(np.uint8).data, 0
        while at < array.nbytes:
            length = int.from_bytes(answers.read(8), signed=True)
            if length < 0:
                self._answer(path, answers)
            end = at + length
            if length <= 0 or end > array.nbytes:
                raise self._died(path)
            while at < end:
                count = answers.readinto(target[at:end])  # type: ignore[attr-defined]
                if not count:
                    raise self._died(path)
                at += count

    def _answer(self, path: Path, answers: BinaryIO) -> dict[str, Any]:
        line = answers.readline()
        if not line.endswith(b"\n"):
            raise self._died(path)
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise DataError(answer["problem"], where=str(path))
        return answer

    def _streams(self) -> tuple[BinaryIO, BinaryIO]:
        if self._process is None:
            self._process = _start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout  # type: ignore[return-value]

    def _died(self, path: Path) -> DataError:
        """What ended the process; the next file starts another one."""
        assert self._process is not None
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue
        code = self._process.wait()
        self._process = None
        if code == -signal.SIGPROF:
            why = "takes far more time than its declared size explains"
        elif code < 0:
            why = f"ends the HDF5 library ({signal.Signals(-code).name}): the file is damaged"
        else:
            why = f"ended the process that reads it (exit code {code})"
        return DataError(f"cannot be read as HDF5: {why}", where=str(path))


def _start() -> subprocess.Popen[bytes]:
    """The reading process, after it has said that it is ready."""
    # It finds the packages that this process finds, and nothing in the working directory (-P).
    search_path = os.pathsep.join(dict.fromkeys(path for path in sys.path if path))
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": search_path},
        )
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            process.kill()
            process.wait()
            errors.seek(0)
            last = errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise DataError(
                f"the process that reads .h5 files does not start: {last}", fix="pip install -e '.[h5]'"
            )
    return process

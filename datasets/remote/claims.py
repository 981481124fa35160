"""Claims: a folder at an address has one writer.

A claim stands in the head of the folder and is renewed while its process lives. Clocks of machines are not compared:
who finds a claim watches the head, and takes over when it has not changed for :data:`LEASE_S` seconds of its own clock.
A writer that was only slow loses nothing of what it has committed; its next commit is refused.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from equipoise.datasets.errors import DataError, InUseError
from equipoise.datasets.remote.commits import HEAD_FILE, Head, Writer
from equipoise.datasets.remote.folders import RemoteFolder

log = logging.getLogger("equipoise")

#: Seconds between renewals, and without one after which a writer counts as dead.
RENEW_S, LEASE_S = 15.0, 60.0
_WATCH_S = 2.0


class Claim:
    """The right to swap the head of a folder, until :meth:`release`.

    Parameters
    ----------
    folder
        The folder.
    owner
        Process and machine, for the messages of others.
    previous_token
        Token of the last claim of this working copy, whose lock the caller holds: the process that had it is dead.
    wait
        Whether to watch a claim that may be abandoned; without it any claim is refused.

    Raises
    ------
    InUseError
        If somebody else is writing.
    """

    def __init__(self, folder: RemoteFolder, owner: str, previous_token: str | None, *, wait: bool) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self.token = secrets.token_hex(8)
        self._content = folder.read(HEAD_FILE)
        self.head = Head.parse(self._content, folder.address)
        if self.head.writer is not None and self.head.writer.token != previous_token:
            self._require_abandoned(self.head.writer, wait)
        mine = Writer(self.token, owner, time.time())
        if not self._replace(replace(self.head, writer=mine)):
            raise self._in_use(Head.parse(folder.read(HEAD_FILE), folder.address).writer)

    def swap(self, commit: str) -> None:
        """Let a commit count.

        Raises
        ------
        InUseError
            If another writer has taken over.
        """
        with self._lock:
            self._change(replace(self.head, commit=commit))

    def release(self) -> None:
        """Let others write."""
        with self._lock:
            self._change(replace(self.head, writer=None))

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Renew the claim during the block, and release it at the end unless it is lost."""
        ended, lost = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._renew, args=(ended, lost), name="claim", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if not lost.is_set():
                try:
                    self.release()
                except DataError as error:  # nothing is lost: the claim is taken over when it is not renewed
                    log.warning("the claim is not released: %s", error)

    def _renew(self, ended: threading.Event, lost: threading.Event) -> None:
        while not ended.wait(RENEW_S):
            try:
                with self._lock:
                    assert self.head.writer is not None
                    self._change(replace(self.head, writer=replace(self.head.writer, renewed=time.time())))
            except InUseError as error:
                lost.set()
                log.error("%s", error)
                return
            except DataError as error:  # the network may be back before the claim has run out
                log.warning("the claim is not renewed: %s", error)

    def _change(self, head: Head) -> None:
        """Replace the head; once more where an earlier change has arrived, and its answer has not."""
        if self._replace(head):
            return
        content = self._folder.read(HEAD_FILE)
        now = Head.parse(content, self._folder.address)
        if now.writer is not None and now.writer.token == self.token:
            self._content = content
            if self._replace(head):
                return
        raise InUseError(
            f"another job has taken over this run folder ({now.writer.owner if now.writer else 'it has ended'})",
            where=self._folder.address,
            fix="nothing of it is overwritten; run the same command again when that job has ended",
        )

    def _replace(self, head: Head) -> bool:
        """Write a head in place of the one that is known; on False, that one is there no more and stays known."""
        content = head.content()
        written = self._folder.replace(HEAD_FILE, content, self._content)
        if not written and self._folder.read(HEAD_FILE) != content:  # else it had arrived, and was sent twice
            return False
        self._content, self.head = content, head
        return True

    def _require_abandoned(self, writer: Writer, wait: bool) -> None:
        """Watch the head for the time of a lease; a claim that is renewed meanwhile is refused."""
        if not wait:
            raise self._in_use(writer)
        log.info("%s: claimed by %s; watching whether it is renewed", self._folder.address, writer.owner)
        until = time.monotonic() + LEASE_S
        while time.monotonic() < until:
            if (content := self._folder.read(HEAD_FILE)) != self._content:
                self._content, self.head = content, Head.parse(content, self._folder.address)
                if self.head.writer is not None:
                    raise self._in_use(self.head.writer)
                return
            time.sleep(min(_WATCH_S, LEASE_S / 5))
        log.warning(
            "%s: taken over from %s, which renews its claim no more", self._folder.address, writer.owner
        )

    def _in_use(self, writer: Writer | None) -> InUseError:
        owner = "a process that has just started" if writer is None else writer.owner
        return InUseError(
            f"another job is writing to this run folder ({owner})",
            where=self._folder.address,
            fix="wait for it, stop it, or choose another address with -o",
        )

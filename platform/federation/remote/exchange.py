"""Questions of the server and answers of the sites, over any transport that carries bytes.

A question and its answer are messages of :mod:`equipoise.platform.federation.messages`: a JSON header and arrays. A
site that fails answers with a failure; a site that does not answer is reported by the transport.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from equipoise.platform.federation.messages import MalformedError, failure_text, pack, unpack

QUESTION_KIND, ANSWER_KIND = "question", "answer"


@dataclass(frozen=True)
class Delivery:
    """What a transport brings: the bytes that a site sent to a numbered question, or why there are none."""

    site: str
    number: int
    data: bytes
    reason: str = ""


class Transport(Protocol):
    """Carries bytes between the server and its sites."""

    name: str

    @property
    def sites(self) -> Sequence[str]:
        """Names of the sites."""

    def send(self, number: int, data: bytes, sites: Sequence[str]) -> None:
        """Send a question to sites; each is delivered once."""
        ...

    def receive(self) -> Delivery:
        """Wait for the next delivery; a site that will never answer is one, too, with a reason.

        Raises
        ------
        FederationError
            If the job was aborted.
        """
        ...


@dataclass(frozen=True)
class Answer:
    """The answer of a site; ``reason`` says why there is none."""

    header: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    reason: str = ""
    size: int = 0


class Exchange:
    """The server's side of a conversation.

    Parameters
    ----------
    transport
        Carries the bytes.
    federation
        Identifier, part of every question.
    """

    def __init__(self, transport: Transport, federation: str) -> None:
        self.transport, self.federation = transport, federation
        self._number = 0
        self._open: set[tuple[str, int]] = set()
        self._arrived: dict[tuple[str, int], Answer] = {}

    def send(
        self,
        what: str,
        sites: Sequence[str],
        header: Mapping[str, Any] | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> int:
        """Ask sites; returns the number of the question."""
        self._number += 1
        data = pack(
            QUESTION_KIND, {"federation": self.federation, "what": what} | dict(header or {}), arrays or {}
        )
        self._open |= {(site, self._number) for site in sites}
        self.transport.send(self._number, data, sites)
        return self._number

    def receive(self, wanted: Collection[tuple[str, int]]) -> tuple[str, Answer]:
        """The next answer to any of these questions, given as site and number."""
        while True:
            for key in [key for key in self._arrived if key in wanted]:
                return key[0], self._arrived.pop(key)
            delivery = self.transport.receive()
            key = (delivery.site, delivery.number)
            if key in self._open:  # else it came after the transport had given it up
                self._open.remove(key)
                self._arrived[key] = read_answer(delivery)

    def ask(
        self,
        what: str,
        sites: Iterable[str],
        header: Mapping[str, Any] | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, Answer]:
        """Ask sites and wait for all of them; site → answer, by name."""
        asked = sorted(sites)
        if not asked:
            return {}
        number = self.send(what, asked, header, arrays)
        waiting = {(site, number) for site in asked}
        answers = {}
        while waiting:
            site, answer = self.receive(waiting)
            waiting.remove((site, number))
            answers[site] = answer
        return dict(sorted(answers.items()))


def read_answer(delivery: Delivery) -> Answer:
    """The answer in a delivery."""
    if delivery.reason:
        return Answer(reason=delivery.reason)
    if (text := failure_text(delivery.data)) is not None:
        return Answer(reason=text, size=len(delivery.data))
    try:
        header, arrays = unpack(ANSWER_KIND, delivery.data)
    except MalformedError as error:
        return Answer(reason=error.what, size=len(delivery.data))
    return Answer(header, arrays, size=len(delivery.data))


def as_array(value: Any) -> np.ndarray:
    """Plain data as bytes, for what is too large for a header."""
    return np.frombuffer(json.dumps(value, allow_nan=False).encode(), np.uint8)


def from_array(array: np.ndarray) -> Any:
    """The inverse."""
    return json.loads(array.tobytes())

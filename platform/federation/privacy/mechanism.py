"""The interface of privacy mechanisms, and the mechanism that does nothing.

A privacy mechanism has a client half, which changes an update before it leaves, and a server half, which processes
the sum. :mod:`equipoise.platform.federation.privacy.combined` implements client-level and record-level differential
privacy and secure aggregation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.aggregation.sums import WeightedMean
from equipoise.platform.federation.messages import ClientUpdate
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from equipoise.platform.federation.clients.study_trainer import LocalSteps
    from equipoise.platform.federation.messages import ClientManifest, TrainRequest


class TooFewContributorsError(FederationError):
    """A sum stays hidden because too few clients contribute to it (exit code 1)."""


class Accumulator(Protocol):
    """Sums vectors one by one; :class:`~equipoise.platform.federation.aggregation.sums.WeightedMean` is one."""

    def add(
        self, values: np.ndarray, weights: Mapping[str, float], factor: float = 1.0, *, client: str = ""
    ) -> None:
        """Add a client's vector; raises FederationError, with nothing added, if it cannot be added."""
        ...

    def result(self) -> np.ndarray:
        """``[P]`` float32, the aggregated update; called once.

        Raises
        ------
        TooFewContributorsError
            If a sum of so few updates may not be known; the round is skipped.
        """
        ...

    def withheld(self) -> Mapping[str, str]:
        """Group → why it is not updated although clients trained it; asked after :meth:`result`."""
        ...


class PrivacyMechanism(Protocol):
    """Client half, server half, and state between rounds.

    Attributes
    ----------
    uniform
        Whether all clients must count equally.
    rate
        Probability with which each client is drawn for a round (Poisson sampling), or None for the study's scheme.
    dtype
        Type of the vector that leaves a client: ``float32``, or ``uint64`` if it is masked.
    sums_only
        Whether only the sums of :meth:`accumulator` are protected, so that nothing else may be done with updates, and
        clients do not say whether theirs is 0.
    every_round
        Whether the result of the accumulator is released in every round and for every parameter, whoever took part:
        the server then takes its step without looking at who answered.
    differential
        Whether privacy is promised of everything that leaves: losses on validation patients and texts of failures then
        do not leave.
    steps
        Takes the steps of a study's local training in place of the plain ones, or None.
    identity
        Name in checkpoints, which are continued with the same mechanism only.
    """

    identity: str
    uniform: bool
    rate: float | None
    dtype: str
    sums_only: bool
    every_round: bool
    differential: bool
    steps: LocalSteps | None

    def register(
        self, manifests: Mapping[str, ClientManifest], sampling: Mapping[str, tuple[float, int]]
    ) -> None:
        """At the server, once: the manifests, and client → sampling rate of patients and steps of a round."""
        ...

    def declare(self, manifest: ClientManifest) -> ClientManifest:
        """At the client, once: what it declares of its patients, as it may leave the client."""
        ...

    def privatize(
        self, update: ClientUpdate, request: TrainRequest, weights: Mapping[str, float]
    ) -> ClientUpdate:
        """At the client: the update as it may leave the client; must not change the state of the mechanism.

        Parameters
        ----------
        weights
            Group → weight of the client in the mean, which the server knows as well.
        """
        ...

    def too_few(self, clients: Sequence[str]) -> str | None:
        """At the server: why these clients are too few for a round, which is then skipped; None if they are enough."""
        ...

    def open_round(self, round_: int, clients: Sequence[str]) -> Mapping[str, Any]:
        """At the server, before a round: plain data that is broadcast to the participants."""
        ...

    def accumulator(self, schema: Schema, clients: Sequence[str]) -> Accumulator:
        """At the server: an accumulator for the vectors of these participants."""
        ...

    def close_round(self, round_: int, asked: Mapping[str, int]) -> Mapping[str, float]:
        """At the server, after a round: figures for the history (epsilon, …).

        Parameters
        ----------
        asked
            Client → requests that were sent to it. All count, also those whose updates were rejected, came too late or
            were lost: they left the client, or may have.
        """
        ...

    def exhausted(self) -> str | None:
        """Why no further round may run, or None."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain data for the checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        ...


class NoPrivacy:
    """No privacy mechanism: updates and sums are not changed."""

    identity = "Open"
    uniform = False
    rate: float | None = None
    dtype = "float32"
    sums_only = False
    every_round = False
    differential = False
    steps: LocalSteps | None = None

    def register(
        self, manifests: Mapping[str, ClientManifest], sampling: Mapping[str, tuple[float, int]]
    ) -> None:
        """Does nothing."""

    def declare(self, manifest: ClientManifest) -> ClientManifest:
        """Returns the manifest unchanged."""
        return manifest

    def privatize(
        self, update: ClientUpdate, request: TrainRequest, weights: Mapping[str, float]
    ) -> ClientUpdate:
        """Returns the update unchanged."""
        return update

    def too_few(self, clients: Sequence[str]) -> str | None:
        """Never."""
        return None

    def open_round(self, round_: int, clients: Sequence[str]) -> Mapping[str, Any]:
        """Does nothing."""
        return {}

    def accumulator(self, schema: Schema, clients: Sequence[str]) -> Accumulator:
        """The weighted mean."""
        return WeightedMean(schema)

    def close_round(self, round_: int, asked: Mapping[str, int]) -> Mapping[str, float]:
        """Does nothing."""
        return {}

    def exhausted(self) -> str | None:
        """Never."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Does nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing."""

"""Validation of updates. An update that fails a check is rejected, and the round goes on without it.

The checks do not depend on the order in which updates arrive: the norm bound comes from the median norm of updates
accepted in *earlier* rounds, so that inline and Ray, interrupted and uninterrupted federations reject the same
updates. The first round has no such history; :meth:`UpdateValidator.outliers` compares the updates of a whole round
where the server holds them, as it does for aggregations that need every update.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from equipoise.platform.federation.messages import DELTA, METRICS, ClientUpdate
from equipoise.platform.federation.params import UpdateValidatorParams
from equipoise.platform.federation.vector import dot_of, norm_of

RejectionKind = Literal[
    "schema", "identity", "replay", "shape", "finite", "arrays", "metrics", "count", "norm", "free_rider"
]

#: An update counts as a copy of the server's last step if its relative distance to a multiple of it is below this.
COPY_TOLERANCE = 1e-4
#: Numbers of a vector that are compared first, before all of them are.
SAMPLE = 4096
#: Number of accepted norms needed before the norm bound applies.
MIN_NORMS = 3
#: Longest norm that is ever accepted: no training gets there, and sums of such vectors stay finite.
LARGEST_NORM = 2.0**31
#: Type of masked vectors, whose values the server cannot interpret.
MASKED = "uint64"
#: Longest accepted name of a metric, in characters.
MAX_NAME_LENGTH = 120


@dataclass(frozen=True)
class ExpectedUpdate:
    """What the server knows about an update before it arrives, for the validator.

    Parameters
    ----------
    schema_hash, size
        Layout of the vector, and P.
    round, client, request_id
        The request that was sent.
    n, counts
        Patients and labelled patients per group that the client declared when it joined.
    arrays
        Names of the further vectors that the strategy sends; no others are accepted.
    dtype
        Of ``delta``: ``float32``, or ``uint64`` where secure aggregation masks it.
    """

    schema_hash: str
    size: int
    round: int
    client: str
    request_id: str
    n: int
    counts: Mapping[str, int]
    arrays: frozenset[str] = frozenset()
    dtype: str = "float32"


class RejectionReason(NamedTuple):
    """Why an update was rejected."""

    kind: RejectionKind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass
class UpdateValidator:
    """Checks every update against what the server expects.

    Parameters
    ----------
    params
        Settings.
    min_n
        Fewest patients of an update that may hold scalars.
    exclude_after
        Number of failures after which a client is excluded.

    Notes
    -----
    Of a vector masked by secure aggregation (``uint64`` is expected) only type and length can be checked; its norm
    must be bounded by the client.
    """

    params: UpdateValidatorParams = field(default_factory=lambda: UpdateValidatorParams.model_validate({}))
    min_n: int = 5
    exclude_after: int = 3
    norms: list[dict[str, list[float]]] = field(init=False, default_factory=list)
    failures: dict[str, int] = field(init=False, default_factory=dict)
    _answered: dict[str, dict[str, float]] = field(init=False, default_factory=dict)
    _last_step: np.ndarray | None = field(init=False, default=None)

    def check(self, update: ClientUpdate, expected: ExpectedUpdate) -> RejectionReason | None:
        """Why the update is rejected; None if it is accepted, and it is then the client's answer in this round."""
        masked = expected.dtype == MASKED
        if reason := self._form(update, expected) or self._declared(update, expected):
            return reason
        norms = {} if masked else _norms(update)
        if not masked and (reason := self._values(update, norms)):
            return reason
        self._answered[update.client] = norms
        return None

    def fail(self, client: str) -> bool:
        """Count a failure (a rejected update or an exception); returns whether the client is now excluded."""
        self.failures[client] = self.failures.get(client, 0) + 1
        return client in self.excluded

    @property
    def excluded(self) -> frozenset[str]:
        """Clients that are left out of all further rounds."""
        return frozenset(client for client, count in self.failures.items() if count >= self.exclude_after)

    def bound(self, name: str = DELTA) -> float:
        """Largest accepted norm of the vector of that name; the same for a whole round."""
        most = LARGEST_NORM if self.params.max_norm is None or name != DELTA else self.params.max_norm
        known = [norm for of_round in self.norms for norm in of_round.get(name, ())]
        if self.params.norm_factor is None or len(known) < MIN_NORMS:
            return most
        return min(most, self.params.norm_factor * statistics.median(known))

    def outliers(self, updates: Sequence[ClientUpdate]) -> dict[str, RejectionReason]:
        """Client → reason, for updates longer than ``norm_factor`` median norms of the given updates of one round."""
        if self.params.norm_factor is None or len(updates) < MIN_NORMS:
            return {}
        norms = {update.client: norm_of(update.delta) for update in updates}
        bound = self.params.norm_factor * statistics.median(norms.values())
        return {client: _too_long(norm, bound) for client, norm in norms.items() if bound < norm}

    def close_round(self, step: np.ndarray | None, rejected: Sequence[str] = ()) -> None:
        """Keep the norms of the round and the step of the server.

        Parameters
        ----------
        step
            ``[P]`` what the server added to the weights, to recognise copies of it; None if nothing was added.
        rejected
            Clients whose updates passed the checks and were rejected later; their norms are not kept.
        """
        norms: dict[str, list[float]] = {}
        for client in sorted(set(self._answered) - set(rejected)):
            for name, norm in self._answered[client].items():
                if norm > 0:
                    norms.setdefault(name, []).append(norm)
        self.norms = [*self.norms, norms][-self.params.window :]
        self._answered = {}
        self._last_step = None if step is None else np.asarray(step, np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint after :meth:`close_round`; the last step is stored separately."""
        rows = [{name: list(norms) for name, norms in row.items()} for row in self.norms]
        return {"norms": rows, "failures": dict(self.failures)}

    def load_state_dict(self, state: Mapping[str, Any], step: np.ndarray | None = None) -> None:
        """The inverse of :meth:`state_dict`, with the step of the last round."""
        self.norms = [
            {str(name): [float(n) for n in norms] for name, norms in row.items()} for row in state["norms"]
        ]
        self.failures = {str(client): int(count) for client, count in state["failures"].items()}
        self._answered = {}
        self._last_step = step

    def _form(self, update: ClientUpdate, expected: ExpectedUpdate) -> RejectionReason | None:
        if update.schema_hash != expected.schema_hash:
            return RejectionReason("schema", "the update was made for another model")
        if update.client != expected.client or update.round != expected.round:
            return RejectionReason(
                "identity",
                f"{update.client} answers round {update.round}; {expected.client}, round {expected.round} was asked",
            )
        if update.request_id != expected.request_id:
            return RejectionReason("replay", "the request id is not that of the request")
        if update.client in self._answered:
            return RejectionReason("replay", "the client has answered this round already")
        if set(update.arrays) != expected.arrays:
            odd = ", ".join(sorted(set(update.arrays) ^ expected.arrays))
            return RejectionReason("arrays", f"vectors missing or too many: {odd}")
        for name, array in {DELTA: update.delta, **update.arrays}.items():
            dtype = expected.dtype if name == DELTA else "float32"
            if array.dtype != np.dtype(dtype) or array.shape != (expected.size,):
                wanted = f"{dtype} ({expected.size},)"
                return RejectionReason("shape", f"{name} is {array.dtype} {array.shape}, not {wanted}")
        return None

    def _declared(self, update: ClientUpdate, expected: ExpectedUpdate) -> RejectionReason | None:
        if not 0 <= update.n <= expected.n:
            return RejectionReason("count", f"{update.n} patients declared, {expected.n} in the manifest")
        for group, count in update.counts.items():
            if not 0 <= count <= expected.counts.get(group, 0):
                known = expected.counts.get(group, 0)
                return RejectionReason(
                    "count", f"{count} labelled patients for {group}, {known} in the manifest"
                )
        if update.steps < 0:
            return RejectionReason("count", f"{update.steps} steps")
        for name, value in update.metrics.items():
            if not name.startswith(METRICS) or len(name) > MAX_NAME_LENGTH:
                return RejectionReason(
                    "metrics",
                    f"{name[:MAX_NAME_LENGTH]!r} is not on the list of scalars that may leave a client",
                )
            if not math.isfinite(value):
                return RejectionReason("finite", f"{name} is {value}")
            if update.n < self.min_n:
                return RejectionReason(
                    "metrics", f"{name} is over {update.n} patients, fewer than {self.min_n}"
                )
        return None

    def _values(self, update: ClientUpdate, norms: Mapping[str, float]) -> RejectionReason | None:
        for name, norm in norms.items():
            if not math.isfinite(norm):  # squares of float32 fit double precision: some number is not finite
                array = {DELTA: update.delta, **update.arrays}[name]
                bad = int(np.count_nonzero(~np.isfinite(array)))
                return RejectionReason("finite", f"{bad} of {len(array)} numbers of {name} are not finite")
            if norm > self.bound(name):
                return _too_long(norm, self.bound(name), name)
        norm = norms[DELTA]
        if norm == 0 and update.steps > 0 and any(update.counts.values()):
            return RejectionReason(
                "free_rider", f"no weight moved in {update.steps} steps on labelled patients"
            )
        if self._last_step is not None and norm > 0 and _is_multiple(update.delta, norm, self._last_step):
            return RejectionReason("free_rider", "the update is the server's last step")
        return None


def _norms(update: ClientUpdate) -> dict[str, float]:
    return {name: norm_of(array) for name, array in {DELTA: update.delta, **update.arrays}.items()}


def _too_long(norm: float, bound: float, name: str = DELTA) -> RejectionReason:
    return RejectionReason("norm", f"{name} has a norm of {norm:.3g}, more than {bound:.3g}")


def _is_multiple(delta: np.ndarray, norm: float, step: np.ndarray) -> bool:
    """Whether delta is a positive multiple of step up to rounding; a sample usually shows that it is not."""
    sample = slice(None, None, max(len(step) // SAMPLE, 1))
    for part in (sample, slice(None)):
        delta_part, step_part = delta[part], step[part]
        delta_square = dot_of(delta_part, delta_part) if part is sample else norm**2
        square, product = dot_of(step_part, step_part), dot_of(delta_part, step_part)
        if part is sample and (delta_square == 0 or square == 0):
            continue
        if (
            square == 0
            or product <= 0
            or delta_square - product**2 / square >= COPY_TOLERANCE**2 * delta_square
        ):
            return False
    return True

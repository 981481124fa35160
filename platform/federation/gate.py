"""The gate: what an update has to be before it may move anything. A bad one is quarantined, the round goes on.

What is checked does not depend on the order in which updates arrive: the norm bound is the median of what was
accepted in *earlier* rounds, so that inline and Ray, interrupted and uninterrupted federations turn away the same
updates. In the first round there is no such history; :meth:`Gate.outliers` looks at a whole round where the engine
holds it, as it does for rules that need every update.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from equipoise.platform.federation.update import DELTA, METRICS, ClientUpdate, Expected
from equipoise.platform.federation.vector import dot_of, norm_of

Kind = Literal[
    "schema", "identity", "replay", "shape", "finite", "arrays", "metrics", "count", "norm", "free_rider"
]

#: An update this close to the last step of the server, relative to its length and up to a factor, was copied.
ECHO = 1e-4
#: Numbers of a vector that are looked at before all are.
SAMPLE = 4096
#: Accepted norms that have to be known before any is turned away by them.
ENOUGH = 3
#: Type of vectors whose values mean nothing to the server.
MASKED = "uint64"
#: Names of metrics longer than this are not names.
MOST_NAME = 120


class GateParams(BaseModel):
    """What the gate turns away beyond what is malformed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    norm_factor: float | None = Field(
        10.0,
        gt=1,
        description="updates longer than so many median norms of the last rounds are turned away; none if null",
    )
    max_norm: float | None = Field(None, gt=0, description="longest update in any round, the first included")
    window: int = Field(5, ge=1, description="rounds whose norms are remembered")


class Reason(NamedTuple):
    """Why an update was turned away."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass
class Gate:
    """Checks every update against what the server expects of it.

    Parameters
    ----------
    params
        Settings.
    min_n
        Patients below which no scalar may come.
    bench_after
        Failures of a client after which it is left out.

    Notes
    -----
    Of a vector that secure aggregation masked (``uint64`` is expected) only type and length can be checked; a
    bound on its norm belongs to the client.
    """

    params: GateParams = field(default_factory=lambda: GateParams.model_validate({}))
    min_n: int = 5
    bench_after: int = 3
    norms: list[dict[str, list[float]]] = field(init=False, default_factory=list)
    failures: dict[str, int] = field(init=False, default_factory=dict)
    _answered: dict[str, dict[str, float]] = field(init=False, default_factory=dict)
    _last_step: np.ndarray | None = field(init=False, default=None)

    def check(self, update: ClientUpdate, expected: Expected) -> Reason | None:
        """Why the update cannot be used; None if it can, and it counts as the client's answer from then on."""
        masked = expected.dtype == MASKED
        if reason := self._form(update, expected) or self._declared(update, expected):
            return reason
        norms = {} if masked else _norms(update)
        if not masked and (reason := self._values(update, norms)):
            return reason
        self._answered[update.client] = norms
        return None

    def fail(self, client: str) -> bool:
        """Count a failure (an update turned away, an exception, a missed deadline); whether the client is benched."""
        self.failures[client] = self.failures.get(client, 0) + 1
        return client in self.benched

    @property
    def benched(self) -> frozenset[str]:
        """Clients that are left out for good."""
        return frozenset(client for client, count in self.failures.items() if count >= self.bench_after)

    def bound(self, name: str = DELTA) -> float:
        """Longest vector of that name that passes, ``inf`` without a bound; the same for all updates of a round."""
        most = self.params.max_norm if self.params.max_norm is not None and name == DELTA else math.inf
        known = [norm for of_round in self.norms for norm in of_round.get(name, ())]
        if self.params.norm_factor is None or len(known) < ENOUGH:
            return most
        return min(most, self.params.norm_factor * statistics.median(known))

    def outliers(self, updates: Sequence[ClientUpdate]) -> dict[str, Reason]:
        """Client → reason for updates longer than ``norm_factor`` medians of these very updates, a whole round."""
        if self.params.norm_factor is None or len(updates) < ENOUGH:
            return {}
        norms = {update.client: norm_of(update.delta) for update in updates}
        most = self.params.norm_factor * statistics.median(norms.values())
        return {client: _too_long(norm, most) for client, norm in norms.items() if most < norm}

    def close_round(self, step: np.ndarray | None, rejected: Sequence[str] = ()) -> None:
        """Remember the round.

        Parameters
        ----------
        step
            ``[P]`` what the server added to the weights, by which an echo is recognised; None if nothing.
        rejected
            Clients whose updates passed and were turned away later; their norms are not remembered.
        """
        found: dict[str, list[float]] = {}
        for client in sorted(set(self._answered) - set(rejected)):
            for name, norm in self._answered[client].items():
                if norm > 0:
                    found.setdefault(name, []).append(norm)
        self.norms = [*self.norms, found][-self.params.window :]
        self._answered = {}
        self._last_step = None if step is None else np.asarray(step, np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint after :meth:`close_round`; the last step is kept beside it."""
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

    def _form(self, update: ClientUpdate, expected: Expected) -> Reason | None:
        if update.schema_hash != expected.schema_hash:
            return Reason("schema", "the update was made for another model")
        if update.client != expected.client or update.round != expected.round:
            return Reason(
                "identity",
                f"{update.client} answers round {update.round}; {expected.client}, round {expected.round} was asked",
            )
        if update.nonce != expected.nonce:
            return Reason("replay", "the nonce is not that of the order")
        if update.client in self._answered:
            return Reason("replay", "the client has answered this round already")
        if set(update.arrays) != expected.arrays:
            odd = ", ".join(sorted(set(update.arrays) ^ expected.arrays))
            return Reason("arrays", f"vectors missing or too many: {odd}")
        for name, array in {DELTA: update.delta, **update.arrays}.items():
            dtype = expected.dtype if name == DELTA else "float32"
            if array.dtype != np.dtype(dtype) or array.shape != (expected.size,):
                wanted = f"{dtype} ({expected.size},)"
                return Reason("shape", f"{name} is {array.dtype} {array.shape}, not {wanted}")
        return None

    def _declared(self, update: ClientUpdate, expected: Expected) -> Reason | None:
        if not 0 <= update.n <= expected.n:
            return Reason("count", f"{update.n} patients declared, {expected.n} in the manifest")
        for group, count in update.counts.items():
            if not 0 <= count <= expected.counts.get(group, 0):
                known = expected.counts.get(group, 0)
                return Reason("count", f"{count} labelled patients for {group}, {known} in the manifest")
        if update.steps < 0:
            return Reason("count", f"{update.steps} steps")
        for name, value in update.metrics.items():
            if not name.startswith(METRICS) or len(name) > MOST_NAME:
                return Reason(
                    "metrics", f"{name[:MOST_NAME]!r} is not on the list of scalars that may leave a client"
                )
            if not math.isfinite(value):
                return Reason("finite", f"{name} is {value}")
            if update.n < self.min_n:
                return Reason("metrics", f"{name} is over {update.n} patients, fewer than {self.min_n}")
        return None

    def _values(self, update: ClientUpdate, norms: Mapping[str, float]) -> Reason | None:
        for name, norm in norms.items():
            if not math.isfinite(norm):  # squares of float32 fit double precision: some number is not finite
                array = {DELTA: update.delta, **update.arrays}[name]
                bad = int(np.count_nonzero(~np.isfinite(array)))
                return Reason("finite", f"{bad} of {len(array)} numbers of {name} are not finite")
            if norm > self.bound(name):
                return _too_long(norm, self.bound(name), name)
        norm = norms[DELTA]
        if norm == 0 and update.steps > 0 and any(update.counts.values()):
            return Reason("free_rider", f"no weight moved in {update.steps} steps on labelled patients")
        if self._last_step is not None and norm > 0 and _is_multiple(update.delta, norm, self._last_step):
            return Reason("free_rider", "the update is the server's last step")
        return None


def _norms(update: ClientUpdate) -> dict[str, float]:
    return {name: norm_of(array) for name, array in {DELTA: update.delta, **update.arrays}.items()}


def _too_long(norm: float, most: float, name: str = DELTA) -> Reason:
    return Reason("norm", f"{name} has a norm of {norm:.3g}, more than {most:.3g}")


def _is_multiple(delta: np.ndarray, norm: float, step: np.ndarray) -> bool:
    """Whether delta is a positive multiple of step but for rounding; an even sample mostly tells that it is not."""
    sample = slice(None, None, max(len(step) // SAMPLE, 1))
    for part in (sample, slice(None)):
        one, other = delta[part], step[part]
        own = dot_of(one, one) if part is sample else norm**2
        square, product = dot_of(other, other), dot_of(one, other)
        if part is sample and (own == 0 or square == 0):
            continue
        if square == 0 or product <= 0 or own - product**2 / square >= ECHO**2 * own:
            return False
    return True

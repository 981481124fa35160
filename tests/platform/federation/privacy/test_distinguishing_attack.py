"""An adversary tries to tell whether one client took part: what it finds out stays below the claimed epsilon.

Two federations are run many times: one as it is, one in which the updates of client ``d`` are zero. From the weights
that are released in every round (and from who took part, if it sees that) the adversary computes one number. How often
the number is above a threshold in one and in the other federation bounds epsilon from below (Jagielski et al. 2020,
"Auditing differentially private machine learning"), here with confidence 99 %.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.engine import Federation
from equipoise.platform.federation.messages import ClientManifest, ClientUpdate, Reply, TrainRequest
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.privacy.combined import CombinedPrivacy
from equipoise.platform.federation.vector import Schema, Segment

SCHEMA = Schema(
    (
        Segment("trunk", (2,), "shared", "weight", 0, 2, True),
        Segment("msi", (1,), "task:msi", "weight", 2, 3, True),
        Segment("hrd", (2,), "task:hrd", "weight", 3, 5, True),
    )
)
#: Client → labelled patients; the head of HRD is that of d alone.
COUNTS = {
    "a": {"shared": 20, "task:msi": 20, "task:hrd": 0},
    "b": {"shared": 20, "task:msi": 20, "task:hrd": 0},
    "c": {"shared": 20, "task:msi": 20, "task:hrd": 0},
    "d": {"shared": 20, "task:msi": 0, "task:hrd": 20},
}
#: What client d adds, far longer than the clipping norm.
OF_D = np.array([30.0, 0, 0, 40.0, 0], np.float32)
TRIALS, ROUNDS = 200, 3


def manifest_of(client: str) -> ClientManifest:
    labels = {task: COUNTS[client][f"task:{task}"] for task in ("msi", "hrd")}
    return ClientManifest(client, 20, labels, {}, COUNTS[client], labels=labels)


class ConstantClients:
    """A backend whose clients always send the same update."""

    name, workers = "constant", 1

    def __init__(self, privacy: CombinedPrivacy, *, with_d: bool) -> None:
        self.privacy, self.waiting = privacy, {}
        self.deltas = {c: np.array([0, 3, 3, 0, 0], np.float32) for c in "abc"}
        self.deltas["d"] = OF_D if with_d else np.zeros(5, np.float32)

    def join(self) -> dict[str, ClientManifest]:
        return {c: manifest_of(c) for c in COUNTS}

    def publish(self, request: TrainRequest) -> TrainRequest:
        return request

    def send(self, published: TrainRequest, client: str, request_id: str) -> None:
        self.waiting[client] = (published, request_id)

    def receive(self, clients: Collection[str]) -> Reply:
        client = next(name for name in self.waiting if name in clients)
        request, request_id = self.waiting.pop(client)
        delta, counts = self.deltas[client], COUNTS[client]
        update = ClientUpdate(SCHEMA.hash, request.round, client, request_id, delta, counts, 20, 1)
        return Reply(client, self.privacy.privatize(update, request, {}).to_bytes())

    def commit(self, reply: Reply) -> None:
        pass

    def client_states(self) -> dict[str, bytes]:
        return {}

    def restore_states(self, states: Mapping[str, bytes]) -> None:
        pass

    def close(self) -> None:
        pass


def run(
    level: Mapping[str, Any], fraction: float, *, seed: int, with_d: bool, old: bool
) -> tuple[float, float]:
    """What the adversary computes, and the claimed epsilon."""
    params = FederationParams.model_validate(
        {
            "rounds": ROUNDS,
            "weights": "uniform",
            "participation": {"scheme": "poisson", "fraction": fraction},
            "validation": {"norm_factor": None},
            "privacy": {"client_level": dict(level), "statistics": "public"},
            "exclude_after": 1000,
        }
    )
    mechanism = CombinedPrivacy(params.privacy, SCHEMA, seed=seed, bits=32, uniform=True, rate=fraction)
    mechanism.every_round = not old
    clients = ConstantClients(mechanism, with_d=with_d)
    released = [np.zeros(5, np.float32)]
    federation = Federation(
        SCHEMA,
        released[0],
        clients,
        params,
        seed=seed,
        lr=0.1,
        privacy=mechanism,
        on_round=lambda row: released.append(federation.server.vector),
    )
    try:
        result = federation.run()
    except FederationError:  # as long as rounds that nobody joined ended a federation
        return -math.inf, math.nan
    steps = np.diff(np.array(released), axis=0)
    seen = {row["round"] for row in result.audit_log.rows if row["client"] == "d"}
    if level.get("adversary") == "models":
        seen = set(range(ROUNDS))
    # The denominators are public: four clients share the trunk, one owns the head of HRD.
    along = [float(steps[r] @ (OF_D * np.array([4, 4, 3, 1, 1]))) for r in seen]
    head_moved = steps[:, 3:].any()
    return (sum(along) if head_moved else -math.inf), result.history[-1]["epsilon_clients"]


def lower_bound(present: Sequence[float], absent: Sequence[float], delta: float) -> float:
    """Epsilon from below: thresholds from the first half of the trials, frequencies from the second half."""
    half, best = len(present) // 2, (-math.inf, 0.0)
    for threshold in sorted({*present[:half], *absent[:half]}):
        for sign in (1, -1):
            hits = [_rate(present[:half], threshold, sign), _rate(absent[:half], threshold, sign)]
            hits = hits if sign > 0 else hits[::-1]
            gain = math.log((hits[0] + 1 / half) / (hits[1] + 1 / half))
            best = max(best, (gain, threshold * sign if math.isfinite(threshold) else threshold))
    bounds = []
    for sign in (1, -1):
        threshold = best[1] * sign if math.isfinite(best[1]) else best[1]
        true, false = (present, absent) if sign > 0 else (absent, present)
        hits = [_count(true[half:], threshold, sign), _count(false[half:], threshold, sign)]
        n = len(present) - half
        low = beta.ppf(0.005, hits[0], n - hits[0] + 1) if hits[0] else 0.0
        high = beta.ppf(0.995, hits[1] + 1, n - hits[1]) if hits[1] < n else 1.0
        bounds.append(math.log((low - delta) / high) if low > delta else -math.inf)
    return max(bounds)


def _count(values: Sequence[float], threshold: float, sign: int) -> int:
    return sum(sign * value >= sign * threshold for value in values)


def _rate(values: Sequence[float], threshold: float, sign: int) -> float:
    return _count(values, threshold, sign) / len(values)


def attack(level: Mapping[str, Any], fraction: float, *, old: bool = False) -> tuple[float, float]:
    """Empirical lower bound of epsilon, and the claimed one."""
    sides = []
    for with_d in (True, False):
        trials = [run(level, fraction, seed=2 * t + with_d, with_d=with_d, old=old) for t in range(TRIALS)]
        sides.append([found for found, _ in trials])
        claims = {claim for _, claim in trials if not math.isnan(claim)}
    (claimed,) = claims
    return lower_bound(sides[0], sides[1], level["delta"]), claimed


@pytest.mark.parametrize(
    ("level", "fraction"),
    [
        ({"clip": 1.0, "noise": 1.0, "delta": 0.01}, 0.7),
        ({"clip": 1.0, "noise": 0.7, "delta": 0.01, "adversary": "models"}, 0.7),
    ],
)
def test_what_an_adversary_finds_out_stays_below_the_claim(level: dict[str, Any], fraction: float) -> None:
    found, claimed = attack(level, fraction)
    assert 0.3 < found < claimed  # the attack has power, and does not refute the claim


def test_the_attack_refutes_a_head_that_moves_exactly_when_its_owner_took_part() -> None:
    """The same attack on steps that are taken for those who answered only: the claim is refuted."""
    level = {"clip": 1.0, "noise": 10.0, "delta": 0.01}
    found, claimed = attack(level, 0.4, old=True)
    assert claimed < 1 < 2 < found
    found, claimed = attack(level, 0.4)
    assert found < claimed

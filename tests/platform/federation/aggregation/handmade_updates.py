"""Handmade updates of sites for the tests of server aggregations."""

from collections.abc import Mapping, Sequence

import numpy as np

from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.objective import weight_table
from equipoise.platform.federation.vector import Schema, Segment


def schema_of(**groups: int) -> Schema:
    """A layout with one segment of the given size per group; ``_`` in a name stands for ``:``."""
    segments, at = [], 0
    for name, size in groups.items():
        group = name.replace("_", ":", 1)
        segments.append(Segment(f"{name}.weight", (size,), group, "weight", at, at + size, True))
        at += size
    return Schema(tuple(segments))


def update(
    schema: Schema,
    client: str,
    delta: Sequence[float] | np.ndarray,
    counts: Mapping[str, int] | int = 10,
    *,
    round_: int = 1,
    request_id: str = "n",
    steps: int = 4,
    n: int | None = None,
    metrics: Mapping[str, float] | None = None,
) -> ClientUpdate:
    """A client's answer; ``counts`` as a number are those of all groups."""
    of_groups = dict.fromkeys(schema.groups, counts) if isinstance(counts, int) else dict(counts)
    return ClientUpdate(
        schema_hash=schema.hash,
        round=round_,
        client=client,
        request_id=request_id,
        delta=np.asarray(delta, np.float32),
        counts=of_groups,
        n=max(of_groups.values(), default=0) if n is None else n,
        steps=steps,
        metrics=metrics or {},
    )


def weights_of(updates: Sequence[ClientUpdate], schema: Schema, *, uniform: bool = False) -> GroupWeights:
    """Weights by labelled patients."""
    return weight_table(
        [{g: float(n > 0) if uniform else float(n) for g, n in u.counts.items()} for u in updates],
        schema.groups,
    )


def cloud(
    count: int, size: int, *, seed: int = 0, spread: float = 0.3, centre: float = 1.0
) -> tuple[Schema, list[ClientUpdate]]:
    """Honest sites around a common direction, in a layout with one group."""
    rng = np.random.default_rng(seed)
    schema = schema_of(shared=size)
    middle = centre * rng.normal(size=size)
    rows = middle + spread * rng.normal(size=(count, size))
    return schema, [update(schema, f"site{i}", row, 10 * (i + 1)) for i, row in enumerate(rows)]

"""The search space: arms, dimensions, and how configurations are drawn from them. Light: no NumPy.

A configuration is a flat dictionary *dimension → plain value*:

- ``model.kind``, ``balancing.weighting``, ``balancing.aggregation``, ``federation.strategy``, and ``model.fusion`` and
  ``model.modulation`` of a model that is made of them, name the entries where
  there is a choice; one combination of them is an *arm*. Combinations that
  :func:`~equipoise.platform.training.params.refusal` refuses are no arms.
- ``model.<field>``, ``training.<field>``, ``federation.<field>`` are settings of those sections;
  ``balancing.<method>.<field>`` are the hyper-parameters of a method and exist only in arms that use it (so do
  ``model.<kind>.<field>``, ``model.<fusion or modulation>.<entry>.<field>`` and ``federation.<strategy>.<field>``).
- ``loss_weights.<task>`` are shares of one: a point of the simplex, in arms with weighting ``static``. A static weight
  is the share times the number of tasks, so that equal shares are the weighting ``equal``.

Ranges come from ``json_schema_extra={"search": …}`` on the fields of parameter models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from equipoise.platform.registry import get
from equipoise.platform.search.trial_records import Value

Config = dict[str, Value]

#: Prefix of shares of the simplex.
LOSS_WEIGHTS = "loss_weights"

#: Entries that an arm chooses by name, in the order of drawing: slot → dotted key of the study.
SLOTS = {
    "kind": "model.kind",
    "weighting": "balancing.weighting",
    "aggregation": "balancing.aggregation",
    "strategy": "federation.strategy",
    "fusion": "model.fusion",
    "modulation": "model.modulation",
}
#: Slots that a model has if its parameters name entries there
#: (:attr:`~equipoise.models.entries.ModelParams.components`).
COMPONENTS = ("fusion", "modulation")


@dataclass(frozen=True)
class Arm:
    """A combination of entries; None where the study leaves no choice."""

    kind: str | None = None
    weighting: str | None = None
    aggregation: str | None = None
    strategy: str | None = None
    fusion: str | None = None
    modulation: str | None = None

    def config(self) -> Config:
        """The arm as part of a configuration."""
        named = {key: getattr(self, slot) for slot, key in SLOTS.items()}
        return {key: value for key, value in named.items() if value is not None}


@dataclass(frozen=True)
class Dimension:
    """One setting: a list of values, or a range.

    Parameters
    ----------
    name
        Name in configurations and tables.
    key
        Dotted key of the study.
    choices
        Values; empty for a range.
    low, high, log, whole
        The range, both ends included; ``log`` draws orders of magnitude, ``whole`` whole numbers.
    slot, entry
        The arm that it belongs to: a slot (:data:`SLOTS`) and the entry's name; None: all.
    default
        Value in the study, or the default of the entry.
    """

    name: str
    key: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    slot: str | None = None
    entry: str | None = None
    default: Value = None

    def applies(self, arm: Arm) -> bool:
        """Whether the arm has this dimension."""
        return self.slot is None or getattr(arm, self.slot) == self.entry

    def value_at(self, share: float) -> Value:
        """The value at a relative position in the range, from 0 to 1."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)  # exp(log(x)) may leave the range by a rounding
        return round(value) if self.whole else value

    def grid(self, levels: int) -> tuple[Value, ...]:
        """All values, or ``levels`` values of the range, evenly spaced, both ends included."""
        if self.choices:
            return self.choices
        return tuple(dict.fromkeys(self.value_at(k / (levels - 1)) for k in range(levels)))

    @property
    def text(self) -> str:
        """The values as text."""
        if self.choices:
            return ", ".join("off" if value is None else str(value) for value in self.choices)
        return f"{self.low:g} to {self.high:g}" + (", by orders of magnitude" if self.log else "")


def takes_explicit_weights(weighting: str | None) -> bool:
    """Whether the weights of the tasks are parameters of the loss weighting; False for an arm without one."""
    return weighting is not None and bool(get("weightings", weighting).attribute("takes_explicit_weights"))


class Source(Protocol):
    """Source of values: a random generator, an estimator, or a recorded configuration."""

    def choose(self, name: str, options: Sequence[str]) -> str:
        """One of the entries of a slot."""
        ...

    def value(self, dimension: Dimension) -> Value:
        """A value of a dimension."""
        ...

    def shares(self, tasks: Sequence[str]) -> Sequence[float]:
        """A point of the simplex."""
        ...


@dataclass(frozen=True)
class Space:
    """The set of all configurations.

    Parameters
    ----------
    arms
        At least one.
    dimensions
        In the order of tables.
    tasks
        Tasks of the simplex of loss weights; empty where no arm weighs by hand.
    refused
        Combinations of searched methods that are refused, with the reason.
    refused_strategies
        Strategies that do not work with this federation, with the reason.
    """

    arms: tuple[Arm, ...]
    dimensions: tuple[Dimension, ...]
    tasks: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    refused_strategies: tuple[tuple[str, str], ...] = ()

    def dimensions_of(self, arm: Arm) -> list[Dimension]:
        """Dimensions that apply to an arm."""
        return [dimension for dimension in self.dimensions if dimension.applies(arm)]

    def has_loss_weights(self, arm: Arm) -> bool:
        """Whether the arm has explicit loss weights."""
        return bool(self.tasks) and takes_explicit_weights(arm.weighting)

    def draw(self, source: Source) -> Config:
        """A configuration with every value from the source: first the entries, then their dimensions."""
        arms = self.arms
        for slot in SLOTS:
            options = list(dict.fromkeys(getattr(arm, slot) for arm in arms))
            # The options of a slot may depend on the entries chosen before it; each set of options has its own name.
            complete = list(dict.fromkeys(getattr(arm, slot) for arm in self.arms))
            name = slot if options == complete else f"{slot} of {', '.join(options)}"
            chosen = options[0] if len(options) == 1 else source.choose(name, options)
            arms = tuple(arm for arm in arms if getattr(arm, slot) == chosen)
        (arm,) = arms
        config = arm.config() | {
            dimension.name: source.value(dimension) for dimension in self.dimensions_of(arm)
        }
        return config | (self._weights(source.shares(self.tasks)) if self.has_loss_weights(arm) else {})

    def size(self) -> int | None:
        """Number of configurations; None if a dimension is a range."""
        if any(not d.choices for d in self.dimensions) or any(map(self.has_loss_weights, self.arms)):
            return None
        return sum(self._count(arm, 1) for arm in self.arms)

    def grid_size(self, levels: int) -> int:
        """Number of points of the grid in which a range has ``levels`` values."""
        return sum(self._count(arm, levels) for arm in self.arms)

    def grid_point(self, number: int, levels: int) -> Config:
        """The configuration at an index of the grid, from 0."""
        for arm in self.arms:
            count = self._count(arm, levels)
            if number < count:
                break
            number -= count
        else:
            raise IndexError("outside the grid")
        config = arm.config()
        for dimension in self.dimensions_of(arm):
            values = dimension.grid(levels)
            number, index = divmod(number, len(values))
            config[dimension.name] = values[index]
        if self.has_loss_weights(arm):
            config |= self._weights(list(simplex_lattice(len(self.tasks), levels))[number])
        return config

    def _count(self, arm: Arm, levels: int) -> int:
        count = math.prod(len(dimension.grid(levels)) for dimension in self.dimensions_of(arm))
        return count * (
            math.comb(levels + len(self.tasks) - 2, len(self.tasks) - 1) if self.has_loss_weights(arm) else 1
        )

    def _weights(self, shares: Sequence[float]) -> Config:
        return {f"{LOSS_WEIGHTS}.{task}": share for task, share in zip(self.tasks, shares, strict=True)}

    def table(self) -> str:
        """The space as text: a line per dimension."""
        rows = []
        for slot, key in SLOTS.items():
            names = [name for name in dict.fromkeys(getattr(arm, slot) for arm in self.arms) if name]
            rows += [(key, ", ".join(names), "")] if names else []
        for d in self.dimensions:
            rows.append((d.name, d.text, f"{d.slot} {d.entry}" if d.slot else ""))
        if self.tasks:
            rows.append(
                (f"{LOSS_WEIGHTS}.*", f"shares of {', '.join(self.tasks)} that sum to 1", "weighting static")
            )
        width = max(len(name) for name, _, _ in rows) if rows else 0
        lines = [f"  {name:<{width}}  {text}" + (f"  ({when})" if when else "") for name, text, when in rows]
        pairs = {(arm.weighting, arm.aggregation) for arm in self.arms}
        if len(pairs) > 1 or self.refused:
            lines.append(f"  {len(pairs)} methods of balancing; {len(self.refused)} combinations are refused")
        lines += [f"  without {strategy}: {reason}" for strategy, reason in self.refused_strategies]
        return "\n".join(lines)


def simplex_lattice(parts: int, levels: int) -> Iterator[tuple[float, ...]]:
    """Points inside the simplex whose shares are whole multiples of 1 / (levels + parts - 1), none of them 0."""

    def compositions(total: int, left: int) -> Iterator[tuple[int, ...]]:
        if left == 1:
            yield (total,)
            return
        for first in range(1, total - left + 2):
            for rest in compositions(total - first, left - 1):
                yield (first, *rest)

    whole = levels + parts - 1
    for composition in compositions(whole, parts):
        yield tuple(number / whole for number in composition)

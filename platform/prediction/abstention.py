"""When no answer is better than one: a set without a single label, slides unlike those of training, poor slides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.platform.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

#: ``answer`` is the only label of the set, empty if there is none (and for values and risks, whose answer is the
#: interval); ``reasons`` is a tuple of sentences, and ``abstained`` says whether there is one.
DECISION_COLUMNS = ("patient", "task", "answer", "abstained", "reasons")


@dataclass(frozen=True)
class AbstentionRules:
    """What leads to an abstention.

    Attributes
    ----------
    ambiguous
        A set with several labels or none; an interval without ends.
    drift
        A slide that is unlike those of training.
    quality
        A warning about a slide.
    """

    ambiguous: bool = True
    drift: bool = True
    quality: bool = True

    def decide(
        self,
        sets: pd.DataFrame,
        drift: pd.DataFrame | None = None,
        quality: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """An answer or the reasons for none, for every row of ``sets``: a table with ``DECISION_COLUMNS``.

        Parameters
        ----------
        sets
            From :meth:`~equipoise.platform.prediction.conformal.Conformal.apply`.
        drift
            From :meth:`~equipoise.platform.prediction.drift.DriftReference.slides`.
        quality
            From :meth:`~equipoise.platform.prediction.quality.QualityLimits.flags`.
        """
        import pandas as pd

        of_slides: dict[str, list[str]] = {}
        if self.drift and drift is not None:
            _collect(of_slides, drift[drift["flagged"].astype(bool)])
        if self.quality and quality is not None:
            _collect(of_slides, quality[quality["severity"] != "remark"])
        rows = []
        for row in sets.to_dict("records"):
            reasons = [*self._of_set(row), *of_slides.get(str(row["patient"]), [])]
            only = row["labels"][0] if len(row["labels"]) == 1 else ""
            answer = "" if reasons else only
            rows.append((row["patient"], row["task"], answer, bool(reasons), tuple(reasons)))
        return pd.DataFrame(rows, columns=list(DECISION_COLUMNS))

    def _of_set(self, row: Mapping[str, Any]) -> list[str]:
        if not self.ambiguous:
            return []
        level = f"{row['level']:.0%}"
        if row["kind"] in ("binary", "multiclass"):
            labels = row["labels"]
            if len(labels) > 1:
                return [f"at {level} the patient may be {' or '.join(labels)}"]
            return [] if labels else [f"at {level} no label fits: the patient is unlike those of every class"]
        if row["kind"] == "survival":
            return [] if row["low"] > 0 else [f"at {level} there is no lower bound above 0"]
        ends = np.isfinite([row["low"], row["high"]]).all()
        return [] if ends else [f"at {level} the interval has no ends"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> AbstentionRules:
        """From :meth:`to_dict`; raises DataError if it is something else."""
        names = {field.name for field in fields(cls)}
        if set(state) != names or not all(isinstance(value, bool) for value in state.values()):
            raise DataError(f"rules of abstention are {', '.join(sorted(names))}", where="abstention rules")
        return cls(**state)


def _collect(of_patient: dict[str, list[str]], flags: pd.DataFrame) -> None:
    """Reasons of each patient; the slide is named."""
    for row in flags.itertuples():
        of_patient.setdefault(str(row.patient), []).append(f"slide {row.slide}: {row.reason}")

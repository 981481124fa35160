"""Whether a new slide is fit for a prediction: what extraction knows about it, and a look at its thumbnail.

A flag is one of three kinds. ``unusable``: there are no features and so no prediction. ``warning``: the prediction may
be wrong for a reason that has nothing to do with the patient. ``remark``: something to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.platform.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Severity = Literal["unusable", "warning", "remark"]

#: One row per flag.
QUALITY_COLUMNS = ("slide", "patient", "check", "severity", "reason")
#: Sources of a pixel size that the scanner itself stated; ``stamp`` and ``trident``: of imported features.
_STATED = frozenset({"metadata", "stamp", "trident"})


class SlideLook(NamedTuple):
    """What a thumbnail shows.

    Attributes
    ----------
    density
        ``[3]`` mean optical density of the tissue in red, green and blue; NaN without enough tissue.
    ink
        Pen marks, as a share of the tissue.
    blur
        Tissue out of focus, as a share of all tissue.
    """

    density: NDArray[np.float64]
    ink: float
    blur: float


def look_at_slide(
    path: str | Path, table_mpp: float | None = None, study_mpp: float | None = None
) -> SlideLook:
    """Read the thumbnail of a slide, and measure colour, pen marks and focus.

    Parameters
    ----------
    path
        File or address.
    table_mpp, study_mpp
        As for :func:`~equipoise.datasets.slides.reader.open_slide`.

    Raises
    ------
    SlideProblem
        If the slide cannot be opened.
    """
    from equipoise.datasets.slides.reader import open_slide
    from equipoise.datasets.slides.stain import mean_density
    from equipoise.datasets.slides.tissue import TissueParams, find_tissue

    with open_slide(path, table_mpp, study_mpp) as reader:
        tissue = find_tissue(reader, TissueParams())
    ink = 0 if tissue.ink is None else int(tissue.ink.sum())
    blur = 0 if tissue.blur is None else int(tissue.blur.sum())
    clear = int(tissue.mask.sum())
    return SlideLook(
        mean_density(tissue.thumbnail, tissue.mask),
        ink / max(clear + blur, 1),
        blur / max(clear + blur, 1),
    )


@dataclass(frozen=True)
class QualityLimits:
    """Limits from which a slide is flagged.

    Attributes
    ----------
    fewest_tiles
        Fewer tiles than this are a warning.
    most_bad_tiles
        Larger share of tiles that could not be read.
    most_ink, most_blur
        Larger share of pen marks, and of tissue out of focus.
    """

    fewest_tiles: int = 10
    most_bad_tiles: float = 0.05
    most_ink: float = 0.10
    most_blur: float = 0.25

    @classmethod
    def fit(cls, tiles: ArrayLike, ink: ArrayLike = (), blur: ArrayLike = ()) -> QualityLimits:
        """Limits of a model whose training slides were like this: what 99 of 100 of them keep is no reason for a flag.

        Parameters
        ----------
        tiles
            Tiles of each training slide.
        ink, blur
            Shares of :class:`SlideLook`, of the slides that were looked at; limits are at least the usual ones.
        """
        usual = cls()
        known, inked, blurred = (_finite(values) for values in (tiles, ink, blur))
        return cls(
            fewest_tiles=int(np.floor(np.quantile(known, 0.01))) if len(known) else usual.fewest_tiles,
            most_ink=max(usual.most_ink, _upper(inked)),
            most_blur=max(usual.most_blur, _upper(blurred)),
        )

    def flags(self, index: pd.DataFrame, looks: Mapping[str, SlideLook] | None = None) -> pd.DataFrame:
        """Flags of slides: a table with ``QUALITY_COLUMNS``, without rows for slides that have none.

        Parameters
        ----------
        index
            Rows of the feature store's index with a column ``patient``.
        looks
            Slide → what its thumbnail shows, of those that were looked at.
        """
        import pandas as pd

        rows: list[tuple[str, str, str, Severity, str]] = []
        for row in index.to_dict("records"):
            slide, patient = str(row["slide"]), str(row["patient"])
            found = [*_of_index(row, self), *_of_look((looks or {}).get(slide), self)]
            rows += [(slide, patient, *flag) for flag in found]
        return pd.DataFrame(rows, columns=list(QUALITY_COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> QualityLimits:
        """From :meth:`to_dict`; raises DataError if it is something else."""
        names = {field.name for field in fields(cls)}
        if set(state) != names or not all(isinstance(value, int | float) for value in state.values()):
            raise DataError(f"limits of quality are {', '.join(sorted(names))}", where="quality limits")
        return cls(**state)


_Flag = tuple[str, Severity, str]


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, float)
    return np.asarray(x[np.isfinite(x)])


def _upper(values: NDArray[np.float64]) -> float:
    """What 99 of 100 values do not exceed, with three decimals; 0 without values."""
    return float(np.round(np.quantile(values, 0.99), 3)) if len(values) else 0.0


def _of_index(row: Mapping[str, Any], limits: QualityLimits) -> list[_Flag]:
    if row["status"] != "ok":
        from equipoise.datasets.slides.problems import STATUSES

        reason = row.get("error") or STATUSES.get(row["status"], "")
        return [(str(row["status"]), "unusable", str(reason))]
    flags: list[_Flag] = []
    tiles, bad = int(row["n"]), int(row.get("bad_tiles") or 0)
    if tiles < limits.fewest_tiles:
        counted = "1 tile" if tiles == 1 else f"{tiles} tiles"
        few = f"{counted}; 99 of 100 training slides have {limits.fewest_tiles} or more"
        flags.append(("few_tiles", "warning", few))
    if bad and bad / (bad + tiles) > limits.most_bad_tiles:
        flags.append(("bad_tiles", "warning", f"{bad} of {bad + tiles} tiles could not be read"))
    source, mpp = str(row.get("mpp_source") or ""), row.get("mpp", np.nan)
    if source and source not in _STATED:
        said = {"table": "the slides table", "study": "the command line or the study"}.get(
            source, f"its {source}"
        )
        flags.append(
            ("mpp_source", "remark", f"pixel size {mpp:.3g} um/px from {said}, not from the scanner")
        )
    elif not source and not np.isfinite(mpp):
        flags.append(("mpp_source", "remark", "nobody has stated the pixel size"))
    if row.get("error"):
        flags.append(("extraction", "warning", str(row["error"])))
    return flags


def _of_look(look: SlideLook | None, limits: QualityLimits) -> list[_Flag]:
    if look is None:
        return []
    flags: list[_Flag] = []
    if look.ink > limits.most_ink:
        flags.append(("pen", "warning", f"pen marks as large as {look.ink:.0%} of the tissue"))
    if look.blur > limits.most_blur:
        flags.append(("blur", "warning", f"{look.blur:.0%} of the tissue is out of focus and was left out"))
    return flags

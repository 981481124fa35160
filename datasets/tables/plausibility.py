"""Implausible numbers: lost decimal points and mixed units.

Spreadsheets in another language drop decimal points on import: 2.566 becomes 256666666667 beside 2.7 in the
same column. The place of the point cannot be recovered, so such a column is refused rather than scaled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.datasets.errors import DataError

#: Orders of magnitude between the smallest and the largest positive value of a plausible measurement.
MAX_ORDERS = 6.0
#: Whole numbers from here on have nine digits and more: digits of a fraction without its point.
HUGE = 1e8
#: Numbers that often stand for a missing one.
SENTINELS = (-1.0, -9.0, -99.0, -999.0, -9999.0, 999.0, 9999.0, 99999.0)
#: How far beyond all other values a positive one of them lies.
SENTINEL_RATIO = 5.0
#: Ratio of two cohorts' medians from which their units look different (percent and share, days and months).
UNIT_RATIO = 20.0


def orders_of_magnitude(values: np.ndarray) -> float:
    """log10 of largest over smallest positive value; 0 without positive values."""
    positive = values[values > 0]
    return float(np.log10(positive.max()) - np.log10(positive.min())) if len(positive) else 0.0


def check_plausible(values: np.ndarray, patients: Sequence[str], where: str, *, allow: bool = False) -> None:
    """Refuse a column of numbers that looks as if it had lost its decimal points.

    Parameters
    ----------
    values
        [n] numbers, NaN = missing.
    patients
        [n] names for the message.
    where
        Task and column.
    allow
        The study says that the range is right.

    Raises
    ------
    DataError
        If positive values span more than six orders of magnitude, or at least half of all values are whole
        numbers of nine and more digits.
    """
    known = np.flatnonzero(~np.isnan(values))
    if allow or len(known) == 0:
        return
    numbers = values[known]
    fix = "take the column from its original source; if it is right, set 'allow_wide_range: true' on it"
    if (orders := orders_of_magnitude(numbers)) > MAX_ORDERS:
        positive = known[numbers > 0]
        low, high = positive[np.argmin(values[positive])], positive[np.argmax(values[positive])]
        raise DataError(
            f"values span {orders:.0f} orders of magnitude ({values[low]:.12g} of {patients[low]} beside "
            f"{values[high]:.12g} of {patients[high]}), as columns do that lost their decimal points",
            where=where,
            fix=fix,
        )
    huge = (np.abs(numbers) >= HUGE) & (numbers == np.round(numbers))
    if 2 * np.count_nonzero(huge) >= len(numbers):
        example = known[huge][0]
        raise DataError(
            f"{np.count_nonzero(huge)} of {len(numbers)} values are whole numbers of nine and more digits "
            f"({values[example]:.12g} of {patients[example]}), as fractions are without their decimal points",
            where=where,
            fix=fix,
        )


def sentinel_note(where: str, values: np.ndarray) -> str | None:
    """A remark where a number seems to stand for a missing one: -9 among values of 0 and more, 999 far above all.

    Parameters
    ----------
    where
        Task and column.
    values
        [n] numbers, NaN = missing.

    Examples
    --------
    >>> sentinel_note("task 'T'", np.array([0.0, 1.0, -9.0, 2.0, -9.0]))
    "task 'T': -9 stands 2 times among values of 0 to 2: if it means missing, write exclude: [-9]"
    """
    numbers = values[~np.isnan(values)]
    found = [number for number in SENTINELS if (numbers == number).any()]
    rest = numbers[~np.isin(numbers, found)]
    if not found or len(rest) == 0:
        return None
    low, high = float(rest.min()), float(rest.max())
    odd = [n for n in found if (n < 0 <= low) or (n > 0 and n >= SENTINEL_RATIO * max(abs(low), abs(high)))]
    if not odd:
        return None
    listed = ", ".join(f"{number:g}" for number in odd)
    times = int(np.isin(numbers, odd).sum())
    return (
        f"{where}: {listed} stands {times} times among values of {low:.4g} to {high:.4g}: if it means missing, "
        f"write exclude: [{listed}]"
    )


def unit_note(name: str, medians: dict[str, float]) -> str | None:
    """A remark where the median of a task differs so much between cohorts that the units may differ.

    Parameters
    ----------
    medians
        Cohort → median of its values; only positive medians are compared.
    """
    positive = {cohort: median for cohort, median in medians.items() if median > 0}
    if len(positive) < 2:
        return None
    low, high = min(positive, key=positive.__getitem__), max(positive, key=positive.__getitem__)
    if positive[high] < UNIT_RATIO * positive[low]:
        return None
    return (
        f"task {name!r}: the median is {positive[low]:.4g} in {low} and {positive[high]:.4g} in {high}: "
        "do both cohorts use the same unit?"
    )

"""Targets from sums of sites that are elsewhere.

A fit (:func:`~equipoise.platform.training.targets.targets_from_statistics`) asks its statistics one question after the
other, and each question is a function of the totals before it. Server and sites run the same fit on the same totals,
so that a question never travels: the server says how far it is and sends the last total, a site repeats the fit up to
its first unknown total and sends its own sums instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from equipoise.datasets.omics.statistics import Sums
from equipoise.platform.errors import FederationError
from equipoise.platform.federation.remote.exchange import Exchange, as_array
from equipoise.platform.federation.standardisation import FederatedStatistics
from equipoise.platform.training.statistics import Query, Statistics, TrainingRows
from equipoise.platform.training.targets import Targets

#: Fits targets from statistics.
Fit = Callable[[Statistics], Targets]


class LostSiteError(FederationError):
    """A site failed while sums were collected; the fit starts again without it (exit code 1)."""

    def __init__(self, sites: Mapping[str, str]) -> None:
        super().__init__(f"{', '.join(sorted(sites))} failed while sums were collected")
        self.sites = dict(sites)


class RemoteStatistics(FederatedStatistics):
    """At the server: statistics of sites, asked for one total after the other.

    Parameters
    ----------
    exchange
        Asks the sites.
    described
        Site → description, of the sites that take part.
    """

    def __init__(self, exchange: Exchange, described: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(described, self._ask)
        self._exchange, self._described = exchange, dict(described)
        self._last: Sums = {}
        self.step = 0

    def total(self, query: Query) -> Sums:
        """The sum of what the sites answer; they know the question."""
        self._last = super().total(query)
        return self._last

    def _ask(self, query: Query) -> Iterable[Sums]:
        arrays = {f"total/{name}": array for name, array in self._last.items()}
        if not self.step:
            arrays = {"described": as_array(self._described)}
        answers = self._exchange.ask("sums", self._described, {"step": self.step}, arrays)
        if lost := {site: answer.reason for site, answer in answers.items() if answer.reason}:
            raise LostSiteError(lost)
        self.step += 1
        return [dict(answer.arrays) for answer in answers.values()]


class _PendingError(Exception):
    """Carries a site's answer to the first question whose total is not known."""

    def __init__(self, sums: Sums) -> None:
        super().__init__()
        self.sums = sums


class SiteSums(FederatedStatistics):
    """At a site: repeats the server's fit up to the question that is open, and answers it.

    Parameters
    ----------
    described
        Site → description, of all sites that take part.
    rows
        Of this site.
    fit
        The server's.
    """

    def __init__(self, described: Mapping[str, Mapping[str, Any]], rows: TrainingRows, fit: Fit) -> None:
        super().__init__(described, lambda query: [query(rows)])
        self._fit = fit
        self._totals: list[Sums] = []
        self._at = 0

    def total(self, query: Query) -> Sums:
        """The total, where the server has sent it."""
        self._at += 1
        if self._at <= len(self._totals):
            return dict(self._totals[self._at - 1])
        raise _PendingError(super().total(query))

    def answer(self, step: int, total: Sums | None) -> Sums:
        """Sums of this site for the question after so many totals, given the last of them.

        Raises
        ------
        FederationError
            If the server is elsewhere in the fit.
        """
        if total is not None:
            self._totals.append(total)
        if step != len(self._totals):
            raise FederationError(
                f"the server asks for sum {step + 1}, and this site knows {len(self._totals)} totals",
                fix="start the federation again: the site was restarted while sums were collected",
            )
        self._at = 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the server has said it once
                self._fit(self)
        except _PendingError as pending:
            return pending.sums
        raise FederationError(
            "the server asks for more sums than the fit needs",
            fix="install the same version of Equipoise at the server and all sites",
        )

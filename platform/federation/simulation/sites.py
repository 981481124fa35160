"""The clients of a federation: which patients each of them owns, and checks that no patient has two owners.

Development patients are assigned to clients; external cohorts never are. A TCGA-like barcode contains its tissue
source site, a code that is text (``NA`` is Duke University); keys without one, such as those of CPTAC, form one
client per cohort. Small sites are merged, so that a single patient is not exposed by a very small client.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.cohorts.sites import CODE_COLUMN, patient_code, read_institutions, tss_code
from equipoise.datasets.cohorts.splits import strata_of
from equipoise.datasets.params import TableSource
from equipoise.datasets.tables.reading import read_table, require_columns
from equipoise.datasets.tables.tasks import Task, main_task
from equipoise.platform.errors import DataError
from equipoise.platform.federation.params import ClientScheme
from equipoise.platform.registry import get

if TYPE_CHECKING:
    import pandas as pd

#: Name of the client of small sites and of codes that are missing in a table of regions.
OTHER = "other"
#: Most names listed in a message; further ones are counted.
SHOWN = 5


@dataclass(frozen=True)
class Client:
    """A site that owns patients.

    Parameters
    ----------
    name
        Unique among the clients.
    patients
        Sorted keys.
    sites
        Names of the sites before merging; several if small ones were merged.
    """

    name: str
    patients: tuple[str, ...]
    sites: tuple[str, ...]

    def of(self, patients: Iterable[str]) -> tuple[str, ...]:
        """The client's patients among those listed, in the client's order."""
        listed = set(patients)
        return tuple(patient for patient in self.patients if patient in listed)


def assign_clients(
    patients: pd.DataFrame, scheme: ClientScheme, tasks: Sequence[Task], *, base: Path, seed: int
) -> tuple[tuple[Client, ...], list[str]]:
    """Assign the development patients to clients.

    Parameters
    ----------
    patients
        Table of :class:`~equipoise.datasets.cohorts.cohort.Cohorts`; rows with another role than ``develop`` are
        ignored.
    scheme
        The site scheme.
    tasks
        ``dirichlet`` skews the main task.
    base
        Folder that the path of the table starts from.
    seed
        Seed of the control schemes.

    Returns
    -------
    clients, notes
        Clients sorted by name; remarks on merged sites.

    Raises
    ------
    DataError
        If a table cannot be read, or there are fewer than two clients.
    """
    develop = patients[patients["role"] == "develop"].sort_values("patient", kind="stable", ignore_index=True)
    draw = get("client_schemes", scheme.scheme).load()
    sites, notes = draw(develop, scheme, tasks, base, seed)
    names = list(sites)
    if scheme.says("merges_small_sites"):
        names, merged = _merge(develop, names, scheme, base)
        notes += merged
    assigned: dict[str, list[str]] = {}
    origins: dict[str, set[str]] = {}
    for patient, name, site in zip(develop["patient"], names, sites, strict=True):
        assigned.setdefault(name, []).append(patient)
        origins.setdefault(name, set()).add(site)
    clients = tuple(Client(n, tuple(assigned[n]), tuple(sorted(origins[n]))) for n in sorted(assigned))
    if len(clients) < 2:
        raise DataError(
            f"scheme {scheme.scheme!r} makes {len(clients)} client of {len(develop)} patients; a federation needs two",
            where="federation.sites",
            fix="choose another scheme, lower min_patients, or add a cohort with role: develop",
        )
    if small := [f"{c.name} ({len(c.patients)})" for c in clients if len(c.patients) < scheme.min_patients]:
        notes.append(f"clients with fewer than {scheme.min_patients} patients: {_listed(small)}")
    return clients, notes


def by_cohort(
    develop: pd.DataFrame, scheme: ClientScheme, tasks: Sequence[Task], base: Path, seed: int
) -> tuple[list[str], list[str]]:
    """The cohort."""
    return list(develop["cohort"]), []


def by_site(
    develop: pd.DataFrame, scheme: ClientScheme, tasks: Sequence[Task], base: Path, seed: int
) -> tuple[list[str], list[str]]:
    """The ``site:`` of the cohort."""
    return list(develop["site"]), []


def by_tss(
    develop: pd.DataFrame, scheme: ClientScheme, tasks: Sequence[Task], base: Path, seed: int
) -> tuple[list[str], list[str]]:
    """The code in the barcode, else the cohort."""
    return _coded(develop, lambda code: code)


def by_institution(
    develop: pd.DataFrame, scheme: ClientScheme, tasks: Sequence[Task], base: Path, seed: int
) -> tuple[list[str], list[str]]:
    """The institution of the code; an unknown code is a separate site."""
    known = read_institutions(str(scheme.table), base)
    sites, notes = _coded(develop, lambda code: known.get(code, code))
    return sites, notes + _unknown(develop, known, scheme, "counts as a separate site")


def by_region(
    develop: pd.DataFrame, scheme: ClientScheme, tasks: Sequence[Task], base: Path, seed: int
) -> tuple[list[str], list[str]]:
    """The region of the code; unknown codes form one client."""
    known = read_regions(scheme, base)
    sites, notes = _coded(develop, lambda code: known.get(code, OTHER))
    return sites, notes + _unknown(develop, known, scheme, f"goes to {OTHER!r}")


def iid(
    develop: pd.DataFrame, scheme: ClientScheme, tasks: Sequence[Task], base: Path, seed: int
) -> tuple[list[str], list[str]]:
    """Control: patients assigned at random; sizes differ by one at most."""
    order = _generator(seed).permutation(len(develop))
    client = np.empty(len(develop), np.int64)
    client[order] = np.arange(len(develop)) % scheme.clients
    return _numbered(client, scheme.clients), []


def dirichlet(
    develop: pd.DataFrame, scheme: ClientScheme, tasks: Sequence[Task], base: Path, seed: int
) -> tuple[list[str], list[str]]:
    """Control: the share of each class (event, quartile) at each client is drawn from Dir(alpha) (Hsu et al. 2019)."""
    rng = _generator(seed)
    strata = strata_of(main_task(tasks), develop)
    client = np.empty(len(develop), np.int64)
    for stratum in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        shares = rng.dirichlet(np.full(scheme.clients, scheme.alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for number, part in enumerate(np.split(rows, cuts)):
            client[part] = number
    notes = []
    if empty := scheme.clients - len(np.unique(client)):
        notes.append(f"dirichlet: {empty} of {scheme.clients} clients got no patient and are left out")
    return _numbered(client, scheme.clients), notes


def read_regions(scheme: ClientScheme, base: Path) -> dict[str, str]:
    """Tissue source site code → region.

    Raises
    ------
    DataError
        If a column is missing, or a code stands for two regions.
    """
    source = TableSource(path=str(scheme.table))
    table = read_table(source, base)
    require_columns(table, (CODE_COLUMN, scheme.column), source)
    regions: dict[str, str] = {}
    for code, region in zip(table[CODE_COLUMN], table[scheme.column], strict=True):
        if regions.setdefault(code, region) != region:
            raise DataError(
                f"code {code!r} stands for both {regions[code]!r} and {region!r}", where=str(scheme.table)
            )
    return regions


def patient_hash(patient: str) -> str:
    """Digest of a patient's key, by which sites find patients that two of them own.

    The barcodes of a sample and of its patient have the same digest; case and blanks do not matter. A key from a
    small space can be guessed from its digest: it serves comparison, not anonymisation.
    """
    return hashlib.blake2b(patient_code(patient.strip()).upper().encode(), digest_size=16).hexdigest()


def guard_patients(sides: Mapping[str, Iterable[str]]) -> None:
    """Refuse a patient that two sides share.

    Parameters
    ----------
    sides
        Name (of a client, ``test``, an external cohort) → its patients.

    Raises
    ------
    DataError
        Naming the sides and the patients.
    """
    owner: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for side, patients in sides.items():
        for patient in patients:
            first = owner.setdefault(patient_hash(patient), side)
            if first != side:
                shared.setdefault((first, side), []).append(patient)
    _refuse(shared, "patient")


def guard_institutions(sides: Mapping[str, Iterable[str]]) -> None:
    """Refuse an institution that two sides share; ``sides`` are name → institutions (:func:`institutions_of`).

    Raises
    ------
    DataError
        Naming the sides and the institutions.
    """
    owners: dict[str, str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for side, names in sides.items():
        for name in sorted(set(names)):
            first = owners.setdefault(name.casefold(), side)
            if first != side:
                shared.setdefault((first, side), []).append(name)
    _refuse(shared, "institution")


def institutions_of(patients: Iterable[str], scheme: ClientScheme, base: Path) -> set[str]:
    """Institutions of TCGA-like barcodes, or their codes where the scheme has no table of institutions."""
    known = (
        {}
        if scheme.table is None or scheme.says("table_names_regions")
        else read_institutions(scheme.table, base)
    )
    codes = {code for patient in patients if (code := tss_code(patient)) is not None}
    return {known.get(code, code) for code in codes}


def check_no_overlap(
    clients: Sequence[Client], external: Mapping[str, Sequence[str]], scheme: ClientScheme, base: Path
) -> None:
    """Check that no two sides share a patient or, if the scheme asks for it, an institution.

    Parameters
    ----------
    clients, external
        Clients, and external cohort → patients.

    Raises
    ------
    DataError
        Naming the sides and what they share.
    """
    sides = {f"client {c.name}": c.patients for c in clients}
    sides |= {f"external cohort {name}": tuple(patients) for name, patients in external.items()}
    guard_patients(sides)
    if scheme.guard == "institutions":
        guard_institutions(
            {side: institutions_of(patients, scheme, base) for side, patients in sides.items()}
        )


def _coded(develop: pd.DataFrame, name: Callable[[str], str]) -> tuple[list[str], list[str]]:
    """A site for every code; keys without a code belong to the site of their cohort."""
    codes = [tss_code(patient) for patient in develop["patient"]]
    sites = [cohort if c is None else name(c) for c, cohort in zip(codes, develop["cohort"], strict=True)]
    without = Counter(cohort for code, cohort in zip(codes, develop["cohort"], strict=True) if code is None)
    return sites, [
        f"cohort {c}: {n} keys carry no site code; they are one site" for c, n in sorted(without.items())
    ]


def _unknown(
    develop: pd.DataFrame, known: Mapping[str, str], scheme: ClientScheme, consequence: str
) -> list[str]:
    codes = Counter(c for patient in develop["patient"] if (c := tss_code(patient)) and c not in known)
    if not codes:
        return []
    listed = _listed([f"{code} ({count})" for code, count in sorted(codes.items())])
    return [f"{scheme.table} does not know the site code(s) {listed}; each {consequence}"]


def _merge(
    develop: pd.DataFrame, sites: list[str], scheme: ClientScheme, base: Path
) -> tuple[list[str], list[str]]:
    """Merge small sites into their region, and the remaining small ones into one client."""
    names, notes = list(sites), []
    if scheme.merge == "region":
        regions = read_regions(scheme, base)
        of_patient = [regions.get(tss_code(patient) or "", OTHER) for patient in develop["patient"]]
        small = _small(names, scheme.min_patients)
        names = [region if name in small else name for name, region in zip(names, of_patient, strict=True)]
        notes += _merged(small, "their region")
    small = _small(names, scheme.min_patients) - {OTHER}
    if small:
        names = [OTHER if name in small else name for name in names]
        notes += _merged(small, repr(OTHER))
    return names, notes


def _small(names: Iterable[str], minimum: int) -> set[str]:
    return {name for name, count in Counter(names).items() if count < minimum}


def _merged(small: set[str], where: str) -> list[str]:
    return [f"{len(small)} small sites merged into {where}: {_listed(sorted(small))}"] if small else []


def _numbered(client: np.ndarray, count: int) -> list[str]:
    """``client-00`` …, zero-padded so that names sort like numbers."""
    width = len(str(count - 1))
    return [f"client-{number:0{width}d}" for number in client]


def _generator(seed: int) -> np.random.Generator:
    # A separate stream: folds draw from [seed, repeat].
    return np.random.default_rng(np.random.SeedSequence([seed], spawn_key=(0x517E5,)))


def _refuse(shared: Mapping[tuple[str, str], list[str]], what: str) -> None:
    if not shared:
        return
    lines = [
        f"{first} and {second} share {len(who)}: {_listed(who)}" for (first, second), who in shared.items()
    ]
    raise DataError(
        f"{what}s on two sides of the federation; {'; '.join(lines)}",
        where="federation.sites",
        fix=f"assign each {what} to one side: remove it from one of the tables, or choose a scheme that merges",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

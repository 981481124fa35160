"""Matrices with genes in rows and patients in columns, as cBioPortal, UCSC Xena and the GDC write them.

Such a table is recognised by what its header holds: names of known patients or of their samples. TCGA barcodes of
samples are read as those of their patients; samples of normal tissue are left out, and of several tumour samples the
one with the lowest type counts (primary before recurrent and metastatic), with a note.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from equipoise.datasets.errors import DataError
from equipoise.datasets.suggestions import nearest

#: Usual names of the column with the genes, in lower case.
GENE_NAMES = (
    "hugo_symbol",
    "gene",
    "genes",
    "gene_symbol",
    "symbol",
    "gene_name",
    "gene_id",
    "geneid",
    "ensembl_id",
    "ensembl",
    "entrez_gene_id",
    "sample",  # UCSC Xena, whose columns are samples
    "attrib_name",  # LinkedOmics
)
#: A TCGA barcode of a sample: patient, type (01 primary tumour … 10 and more normal tissue), the rest.
SAMPLE = re.compile(r"((?:TCGA|SYN)-[^-]+-[^-]+)-(\d\d)(.*)")
#: Types from here on are normal tissue or controls.
FIRST_NORMAL = 10


@dataclass(frozen=True)
class Turned:
    """Which columns of a table with genes in rows are read.

    Attributes
    ----------
    gene
        Column with the names of the genes.
    columns
        Patient → its column.
    notes
        Remarks on what is left out.
    """

    gene: str
    columns: dict[str, str]
    notes: tuple[str, ...]


def turned(names: Sequence[str], patients: Collection[str] | None) -> Turned | None:
    """How to read a table with these column names if genes are its rows; ``None`` if no column is a known patient.

    Parameters
    ----------
    names
        Column names in the order of the table.
    patients
        Known patients; ``None`` takes every column but those that usually describe genes.
    """
    gene = next((name for name in names if name.strip().casefold() in GENE_NAMES), names[0])
    usual = {name for name in names if name.strip().casefold() in GENE_NAMES}
    known = None if patients is None else set(patients)
    samples: dict[str, list[tuple[int, str, str]]] = {}
    normal = 0
    for name in names:
        if name == gene or name in usual:
            continue
        match = None if known is not None and name in known else SAMPLE.fullmatch(name)
        patient, kind = (match[1], int(match[2])) if match else (name, 0)
        if known is not None and patient not in known:
            continue
        if kind >= FIRST_NORMAL:
            normal += 1
            continue
        samples.setdefault(patient, []).append((kind, match[3] if match else "", name))
    if not samples:
        return None
    several = sum(len(of_patient) > 1 for of_patient in samples.values())
    notes = [f"{normal} samples of normal tissue are left out"] if normal else []
    if several:
        notes.append(f"{several} patients have several tumour samples, of which the first type is read")
    columns = {patient: min(of_patient)[2] for patient, of_patient in samples.items()}
    return Turned(gene, columns, tuple(notes))


def require_turned(names: Sequence[str], patients: Collection[str] | None, where: str) -> Turned:
    """:func:`turned` of a table that is declared to have genes in rows.

    Raises
    ------
    DataError
        If no column is a known patient.
    """
    found = turned(names, patients)
    if found is None:
        known = list(patients or ())
        raise DataError(
            f"no column is a patient of the clinical table: {', '.join(map(repr, names[1:4]))} there, "
            f"{', '.join(map(repr, known[:3]))} here{nearest(names[-1], known)}",
            where=where,
            fix="make the patient keys of both tables equal, letter by letter, or leave 'orient' out",
        )
    return found

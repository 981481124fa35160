"""Gene sets (pathways, signatures): files of them, and how much of each a table holds.

Formats: GMT of MSigDB (one set a line: name, description, genes, separated by tabs), and tables with one column per
set, its name on top and its genes below, as PORPOISE and SurvPath have them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from equipoise.datasets.errors import DataError
from equipoise.datasets.tables.files import open_text, read_grid
from equipoise.datasets.tables.reading import locate

#: Name of a set → its genes, each once, in the order of the file.
GeneSets = dict[str, tuple[str, ...]]


def read_gene_sets(path: str, base: Path) -> GeneSets:
    """Read a ``.gmt`` file, or a table with one column per set.

    Parameters
    ----------
    path
        The file, relative to ``base``.
    base
        Folder of the study file.

    Raises
    ------
    DataError
        If there is no such file, a set has no gene, or two sets have one name.
    """
    file = locate(path, base)
    if file.suffix == ".gmt" or file.suffixes[-2:-1] == [".gmt"]:
        return _read_gmt(file)
    table = read_grid(file)
    sets = {}
    for name in table.columns:
        genes = tuple(dict.fromkeys(gene for gene in table[name].str.strip() if gene))
        if not genes:
            raise DataError(f"set {name!r} has no gene", where=str(file), fix="fill or remove the column")
        sets[str(name)] = genes
    return sets


def _read_gmt(path: Path) -> GeneSets:
    sets: GeneSets = {}
    with open_text(path, "utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            fields = [field.strip() for field in line.rstrip("\r\n").split("\t")]
            if not any(fields):
                continue
            name, genes = fields[0], tuple(dict.fromkeys(gene for gene in fields[2:] if gene))
            if not name or not genes:
                raise DataError(
                    f"line {number} is no gene set ({line.strip()[:40]!r})",
                    where=str(path),
                    fix="a line of a GMT file is name, description and genes, separated by tabs",
                )
            if name in sets:
                raise DataError(
                    f"two sets are called {name!r} (the second in line {number})",
                    where=str(path),
                    fix="give them different names",
                )
            sets[name] = genes
    if not sets:
        raise DataError("the file holds no gene set", where=str(path))
    return sets


def within(sets: Mapping[str, Sequence[str]], genes: Collection[str], min_genes: int = 1) -> GeneSets:
    """The sets cut to these genes; those that keep fewer than ``min_genes`` are left out.

    Raises
    ------
    DataError
        If there is none, or none is left.

    Examples
    --------
    >>> within({"A": ("TP53", "KRAS"), "B": ("EGFR",)}, {"KRAS", "TP53"})
    {'A': ('TP53', 'KRAS')}
    """
    if not sets:
        raise DataError(
            "there are no gene sets", where="tables.rna.gene_sets", fix="read them from their file"
        )
    known = genes if isinstance(genes, set | frozenset) else set(genes)
    cut = {name: tuple(gene for gene in members if gene in known) for name, members in sets.items()}
    left = {name: members for name, members in cut.items() if len(members) >= min_genes}
    if not left:
        in_sets = next(gene for members in sets.values() for gene in members)
        raise DataError(
            f"no gene set has {min_genes} or more of the table's {len(known)} genes: {in_sets} in the sets, "
            f"{min(known, default='none')} in the table",
            where="tables.rna.gene_sets",
            fix="use one naming of genes (omics: {rna: {path: …, gene_table: …}} turns Ensembl ids into symbols)",
        )
    return left


def overlap_note(sets: Mapping[str, Sequence[str]], genes: Collection[str], min_genes: int = 1) -> str:
    """One line on how much of the sets a table holds.

    Raises
    ------
    DataError
        As :func:`within`.
    """
    left = within(sets, genes, min_genes)
    in_sets = {gene for members in sets.values() for gene in members}
    found = in_sets & set(genes)
    shares = sorted(len(members) / len(sets[name]) for name, members in left.items())
    note = (
        f"gene sets: {len(left)} sets; {len(found)} of their {len(in_sets)} genes are in the rna table of "
        f"{len(genes)} genes; the median set keeps {shares[len(shares) // 2]:.0%} of its genes"
    )
    if lost := [name for name in sets if name not in left]:
        more = ", …" if len(lost) > 3 else ""
        note += f"; {len(lost)} with fewer than {min_genes} left out ({', '.join(lost[:3])}{more})"
    return note

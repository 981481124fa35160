"""``equipoise adapt-rna``: stage 1 of Path-GPTOmic."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import CellBase, CellFile, CellGenes, CellKind, CellLayer, plain_job


@plain_job
def adapt_rna(
    reference: CellFile,
    labels: Annotated[str, typer.Option("--labels", help="Column with the cell type.", metavar="COLUMN")],
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder", help="As in a study: a name or '{name: scgpt, folder: DIR}'.", metavar="ENCODER"
        ),
    ],
    out: Annotated[str, typer.Option("-o", "--out", help="Folder of the adapter.", metavar="DIR")],
    labels_table: Annotated[
        str | None,
        typer.Option("--labels-table", help="Table with that column; barcodes in its first.", metavar="FILE"),
    ] = None,
    kind: CellKind = "auto",
    base: CellBase = None,
    layer: CellLayer = "auto",
    gene_column: CellGenes = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A parameter of mixing and training: mixup=two_cells.", metavar="KEY=VALUE"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all random numbers.")] = 7,
    max_cpus: Annotated[int | None, typer.Option("--max-cpus", help="CPUs a local Ray may use.")] = None,
) -> dict[str, Any]:
    """Mix cells into samples like bulk RNA, encode them once, train the adapter that tables.rna.adapter names."""
    from pathlib import Path

    from equipoise.datasets.omics.single_cell import read_single_cells
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.run.adaptation import adapt, adapter_params, encoder_source

    source, params = encoder_source(encoder), adapter_params(set_ or [])
    cells = read_single_cells(
        Path(reference),
        labels,
        labels_table=None if labels_table is None else Path(labels_table),
        kind=kind,  # type: ignore[arg-type]  # checked there
        base=base,
        layer=layer,
        gene_column=gene_column,
    )
    result = adapt(cells, source, Path(out), params, seed=seed, options=RayOptions(cpus=max_cpus))
    print(result.text())
    return result.fields()


command = adapt_rna

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("adapt-rna")

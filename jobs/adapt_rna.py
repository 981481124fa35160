"""``equipoise adapt-rna``: stage 1 of Path-GPTOmic."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


@plain_job
def adapt_rna(
    reference: Annotated[
        str, typer.Option("--reference", help="Single cells: .h5ad, a 10x folder or .h5.", metavar="FILE")
    ],
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
    kind: Annotated[
        str, typer.Option("--kind", help="What the values are: auto, counts, tpm or log (log(1 + x)).")
    ] = "auto",
    base: Annotated[
        float | None, typer.Option("--base", help="Base of the logarithm; default: the file's, else e.")
    ] = None,
    layer: Annotated[str, typer.Option("--layer", help="auto, X, raw or the name of a layer.")] = "auto",
    gene_column: Annotated[
        str | None, typer.Option("--gene-column", help="Column with gene names; default: the index.")
    ] = None,
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

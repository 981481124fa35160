"""``equipoise pretrain-rna``: a small RNA encoder from single cells of one's own."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


@plain_job
def pretrain_rna(
    reference: Annotated[
        str, typer.Option("--reference", help="Single cells: .h5ad, a 10x folder or .h5.", metavar="FILE")
    ],
    out: Annotated[str, typer.Option("-o", "--out", help="Folder of the encoder.", metavar="DIR")],
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
    workers: Annotated[int, typer.Option("--workers", help="Workers of Ray Train.")] = 1,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of network or training: epochs=100.", metavar="KEY=VALUE"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all random numbers.")] = 7,
    max_cpus: Annotated[int | None, typer.Option("--max-cpus", help="CPUs a local Ray may use.")] = None,
) -> dict[str, Any]:
    """Hide genes of single cells, train a network to predict them, write the encoder that tables.rna.encoder names."""
    from pathlib import Path

    from equipoise.datasets.omics.single_cell import read_single_cells
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.run.pretraining import pretrain_encoder, pretraining_params

    params = pretraining_params(set_ or [], workers=workers, seed=seed)
    cells = read_single_cells(
        Path(reference),
        kind=kind,  # type: ignore[arg-type]  # checked there
        base=base,
        layer=layer,
        gene_column=gene_column,
    )
    result = pretrain_encoder(cells, params, Path(out), RayOptions(cpus=max_cpus))
    print(result.text())
    return result.fields()


command = pretrain_rna

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("pretrain-rna")

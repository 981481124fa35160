"""``equipoise pretrain-rna``: a small RNA encoder from single cells of one's own."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import CellBase, CellFile, CellGenes, CellKind, CellLayer, plain_job


@plain_job
def pretrain_rna(
    reference: CellFile,
    out: Annotated[str, typer.Option("-o", "--out", help="Folder of the encoder.", metavar="DIR")],
    kind: CellKind = "auto",
    base: CellBase = None,
    layer: CellLayer = "auto",
    gene_column: CellGenes = None,
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
    from equipoise.platform.run.rna_pretraining import pretrain_encoder, pretraining_params

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

"""A model with branches across sites: one has no RNA and takes part, and every site slows branches by its own ratio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.steps import run_steps

SMALL = {"dim": 4, "layers": 1, "image_params": {"dim": 4, "hidden": 2}}
WHOLE = {"optimizer": "adamw", "lr": 0.02, "batch": "full", "epochs": 2}


def groups_that_moved(simulation, result) -> dict[str, bool]:
    moved = result.vector != simulation.initial
    return {group: bool(moved[simulation.schema.mask([group])].any()) for group in simulation.schema.groups}


def test_a_site_without_rna_trains_what_it_can(federate, sites) -> None:
    alone = federate(model="gptomic", model_params=SMALL, clients={"D": sites["D"]}, rounds=1, local=WHOLE)
    groups = groups_that_moved(alone, alone.run())
    assert not groups["modality:rna"]
    assert groups["modality:wsi"]
    assert groups["absent:rna"]
    assert groups["task:MSI"]
    everyone = federate(model="gptomic", model_params=SMALL, rounds=1, local=WHOLE)
    assert groups_that_moved(everyone, everyone.run())["modality:rna"]


def test_branches_are_slowed_at_the_sites(federate) -> None:
    """The first round differs in what a coefficient acts on, and in nothing else."""
    vectors = {}
    for name, params in {
        "none": {"modulation": "none"},
        "gradmod": {"modulation": "gradmod", "modulation_params": {"alpha": 3.0, "ratio": "geometric"}},
        "tasks": {"modulation": "aux_losses", "modulation_params": {"enter": "tasks"}},
    }.items():
        one = federate(
            model="gptomic",
            model_params=SMALL | params | {"dropout": 0.0},
            rounds=1,
            local=WHOLE | {"epochs": 1},
        )
        vectors[name] = (one.schema, one.run().vector)
    schema, plain = vectors["none"]
    slowed = vectors["gradmod"][1]
    assert np.isfinite(vectors["tasks"][1]).all()
    own = schema.mask(["modality", "absent"])
    assert np.array_equal(slowed[~own], plain[~own])
    assert not np.array_equal(slowed[own], plain[own])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation of three built-in cohorts of feature bags (SYNTHETIC), one of them without its table of RNA."""
    from equipoise.datasets.synthetic import generate
    from equipoise.datasets.synthetic.catalogue import resolve_preset

    folder = tmp_path_factory.mktemp("branches")
    whole = resolve_preset("bench")
    cohorts = tuple(c.model_copy(update={"patients": 16}) for c in whole.cohorts[:3])
    small = whole.model_copy(update={"cohorts": cohorts})
    for job in generate.plan(small, 1):
        generate.write_patient(job, folder / "bench")
    generate.write_tables(small, 1, folder / "bench")
    study = yaml.safe_load((Path(__file__).parents[3] / "examples" / "federated.yaml").read_text())
    named = {cohort.name for cohort in cohorts}
    study["cohorts"] = [cohort for cohort in study["cohorts"] if cohort["name"] in named]
    del study["cohorts"][1]["omics"]
    study["features"]["imported"] = [f"bench/{name}/features" for name in sorted(named)]
    study |= {
        "model": {"kind": "gptomic", "dim": 8, "layers": 1, "image_params": {"dim": 8, "hidden": 4}},
        "training": {"epochs": 1},
        "splits": {"folds": 2},
        "evaluation": {"bootstrap": 50},
    }
    study["tasks"] = study["tasks"][:2]
    study["federation"] |= {"rounds": 2, "min_n": 1, "backend": "inline"}
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    loaded = load_study(file)
    run_steps(
        loaded, RunFolder.open(loaded, str(folder / "run"), "auto"), ("validate", "extract", "federate")
    )
    return folder / "run"


def test_built_in_cohorts_take_part_without_rna(run: Path) -> None:
    table = pd.read_csv(run / "federated" / "sites.csv", keep_default_na=False, na_values=[""])
    tested = table.query("scope == 'client' and role == 'test' and method == 'federated'")
    assert tested["client"].nunique() == 3
    manifests = (run / "federated").rglob("*.json*")
    assert any("rna: no patient has it" in file.read_text() for file in manifests)

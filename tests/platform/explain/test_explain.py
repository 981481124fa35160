"""The step on made-up patients: files, resuming, refusals; tables against closed forms of a linear model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.platform.explain.cases import TASKS, case_of, model

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.omics.components import ComponentTransform
from equipoise.datasets.omics.transforms import Logarithm, MatrixTransform
from equipoise.models.batch import CaseShape
from equipoise.platform.errors import DataError
from equipoise.platform.explain.attribution import Method, explain_case
from equipoise.platform.explain.explain import explain, explained_tasks
from equipoise.platform.explain.explain_inputs import ExplainInputs
from equipoise.platform.explain.explained import Explained
from equipoise.platform.explain.fold_models import FoldModels
from equipoise.platform.explain.outputs import explained_outputs
from equipoise.platform.explain.params import ExplainParams
from equipoise.platform.explain.table_scores import by_pathway, summarise, table_scores
from equipoise.platform.explain.tile_scores import list_tile_scores, read_tile_scores
from equipoise.platform.training.crossval import TrainedFold
from equipoise.platform.training.targets import Targets

GENES = ("A", "B", "C", "D")
RNG = np.random.default_rng(3)


def matrix(genes: tuple[str, ...] = GENES) -> MatrixTransform:
    """Standardisation that leaves numbers as they are."""
    g = len(genes)
    one, zero = np.ones(g, np.float32), np.zeros(g, np.float32)
    wide = np.full(g, 100, np.float32)
    return MatrixTransform(genes, Logarithm("none"), np.arange(g), zero, -wide, wide, zero, one)


def targets(table: Any = None) -> Targets:
    table = table or matrix()
    return Targets(TASKS[:2], CaseShape(6, {"rna": len(table.names)}), tables={"rna": table})


def fold(name: str, test: list[str], train: list[str], seed: int) -> TrainedFold:
    of = targets()
    return TrainedFold(
        model("concat", of, seed).float(), of, {"patients": {"train": train, "val": [], "test": test}}
    )


def patients() -> dict[str, dict[str, Case]]:
    """Six development and three external patients; P0 has two slides, E2 no RNA."""
    made: dict[str, dict[str, Case]] = {"test": {}, "external": {}}
    for role, names in (("test", [f"P{i}" for i in range(6)]), ("external", ["E0", "E1", "E2"])):
        for name in names:
            bag = RNG.normal(size=(12, 6))
            changes: dict[str, Any] = {"cohort": role, "columns": {"rna": GENES}}
            if name != "E2":
                changes["omics"] = {"rna": RNG.normal(size=4).astype(np.float32)}
            if name == "P0":
                changes |= {"slides": ("P0-1", "P0-2"), "tiles": (7, 5), "mpp": (0.5, 0.5)}
            made[role][name] = case_of(bag, name, **changes)
    return made


CASES = patients()


def predictions() -> pd.DataFrame:
    rows = []
    for role, cases in CASES.items():
        for i, name in enumerate(cases):
            folds = (0, 1) if role == "external" else (int(i >= 3),)
            for f in folds:
                key = {"patient": name, "cohort": role, "site": "S", "repeat": 0, "fold": f, "role": role}
                nothing = {"time": np.nan, "event": np.nan}
                p = (i + 1) / 8
                rows.append(
                    {**key, "task": "MSI", "class": "MSI-H", "score": p, "target": float(i % 2), **nothing}
                )
                rows += [
                    {**key, "task": "subtype", "class": c, "score": s, "target": float(c == "a"), **nothing}
                    for c, s in (("a", 0.2), ("b", 0.5), ("c", 0.3))
                ]
    return pd.DataFrame(rows)


@pytest.fixture
def given() -> ExplainInputs:
    develop = list(CASES["test"])
    folds = {"0-0": fold("0-0", develop[:3], develop[3:], 0), "0-1": fold("0-1", develop[3:], develop[:3], 1)}
    everyone = {**CASES["test"], **CASES["external"]}
    slides = [(s, p, f"/nowhere/{s}.svs", 0.5) for p, case in everyone.items() for s in case.slides]
    rna = pd.DataFrame(
        {p: c.omics["rna"] for p, c in everyone.items() if "rna" in c.omics}, index=list(GENES)
    ).T
    cohorts = SimpleNamespace(
        slides=pd.DataFrame(slides, columns=["slide", "patient", "path", "mpp"]), omics={"rna": rna}
    )
    inputs = SimpleNamespace(cohorts=cohorts, features="store", content_keys={p: p for p in everyone})
    return ExplainInputs(
        params=ExplainParams(
            methods=("integrated_gradients",),
            slides=2,
            top_k=3,
            patients=8,
            steps=2,
            pictures=False,  # type: ignore[arg-type]
        ),
        models=FoldModels(folds, CASES),  # type: ignore[arg-type]
        inputs=inputs,  # type: ignore[arg-type]
        predictions=predictions(),
        tasks=("MSI", "subtype"),
        main="MSI",
        folds={"0-0": "one", "0-1": "two"},
        seed=1,
        synthetic=True,
        whole_slides="",
        gene_sets={"first": ["A", "B", "X"], "none": ["Y"]},
        mpp_override=None,
    )


#: Maps alone.
QUICK = ExplainParams(slides=1, top_k=3, checks=False, patients=0, pictures=False)


def with_changes(given: ExplainInputs, **changes: Any) -> ExplainInputs:
    return ExplainInputs(**{**vars(given), **changes})


def test_a_run_is_explained_once(given: ExplainInputs, tmp_path: Path) -> None:
    first = explain(given, tmp_path)
    # Highest and lowest of each cohort: P5, P0 (two slides) and E2, E0; two tasks, the predicted class of subtype.
    assert first == {
        "patients": 4,
        "maps": 10,
        "made": 10,
        "maps_failing": first["maps_failing"],
        "patients_of_tables": 8,
    }
    slides = pd.read_csv(tmp_path / "slides.csv")
    reasons = slides.drop_duplicates("slide").set_index("slide")["reason"].to_dict()
    assert reasons == {
        "E2-1": "highest probability", "E0-1": "lowest probability", "P5-1": "highest probability",
        "P0-1": "lowest probability", "P0-2": "lowest probability",
    }  # fmt: skip
    maps = [read_tile_scores(path) for path in list_tile_scores(tmp_path)]
    assert {one.class_name for one in maps if one.task == "subtype"} == {"b"}
    assert all(one.synthetic for one in maps)
    external, develop = ([one for one in maps if one.cohort == role] for role in ("external", "test"))
    assert all(one.spread is not None for one in external)  # both folds' models
    assert all(one.spread is None for one in develop)  # the model that was tested on the patient
    assert all(
        {"deletion", "randomisation", "agreement", "completeness"} == {c.name for c in one.checks}
        for one in maps
    )
    agreement = {one.cohort: next(c for c in one.checks if c.name == "agreement") for one in maps}
    assert "1 of them learned from this patient" in agreement["test"].reason
    assert "learned" not in agreement["external"].reason
    checks = pd.read_csv(tmp_path / "checks.csv")
    assert len(checks) == 40
    tiles = pd.read_parquet(tmp_path / "tiles.parquet")
    assert (tiles["crop"] == "").all()  # the slides are not there
    one = maps[0]
    own = tiles[(tiles["slide"] == one.slide) & (tiles["task"] == one.task)]
    top = own[own["end"] == "top"]["score"].to_numpy()
    np.testing.assert_allclose(top, np.sort(one.score)[::-1][:3])
    np.testing.assert_allclose(own[own["end"] == "bottom"]["score"], np.sort(one.score)[:3])

    before = {path: path.stat().st_mtime_ns for path in list_tile_scores(tmp_path)}
    again = explain(given, tmp_path)
    assert again == first | {"made": 0}
    assert before == {path: path.stat().st_mtime_ns for path in list_tile_scores(tmp_path)}
    changed = explain(
        with_changes(
            given, folds={"0-0": "one", "0-1": "other"}, params=ExplainParams(slides=1, pictures=False)
        ),
        tmp_path,
    )
    assert (changed["maps"], changed["made"]) == (4, 4)
    assert {path.parent.name for path in list_tile_scores(tmp_path)} == {"E2-1", "P5-1"}


def test_damaged_scores_are_made_again(given: ExplainInputs, tmp_path: Path) -> None:
    given = with_changes(given, params=QUICK)
    explain(given, tmp_path)
    path = list_tile_scores(tmp_path)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert explain(given, tmp_path)["made"] == 1
    assert path.read_bytes() == whole


def test_named_slides_and_patients(given: ExplainInputs, tmp_path: Path) -> None:
    named = with_changes(
        given, params=ExplainParams(slides=("P0-2", "E1"), checks=False, patients=0, pictures=False)
    )
    assert explain(named, tmp_path)["maps"] == 6  # both slides of P0, which the model reads together
    assert not (tmp_path / "genes.csv").exists()
    with pytest.raises(DataError, match=r"'P0-3' is no slide and no patient.*Did you mean 'P0-[12]'"):
        explain(with_changes(given, params=ExplainParams(slides=("P0-3",))), tmp_path)


def test_genes_pathways_and_modalities(given: ExplainInputs, tmp_path: Path) -> None:
    explain(with_changes(given, params=ExplainParams(slides=0, steps=4)), tmp_path)
    genes = pd.read_csv(tmp_path / "genes.csv")
    assert set(genes["gene"]) == set(GENES)
    counts = genes[genes["task"] == "MSI"].groupby("cohort")["n"].max().to_dict()
    assert counts == {"external": 2, "test": 6}  # E2 has no RNA
    pathways = pd.read_csv(tmp_path / "pathways.csv")
    assert set(pathways["pathway"]) == {"first"}
    assert set(pathways["genes"]) == {2}
    mean = genes[genes["gene"].isin(["A", "B"])].groupby(["cohort", "task"])["mean"].sum()
    np.testing.assert_allclose(pathways.set_index(["cohort", "task"])["mean"], mean, rtol=1e-6)
    modalities = pd.read_csv(tmp_path / "modalities.csv")
    assert set(modalities["modality"]) == {"wsi", "rna"}
    shares = modalities.groupby(["patient", "task"])["ig_share"].sum()
    np.testing.assert_allclose(shares, 1, rtol=1e-6)
    assert "E2" not in set(modalities["patient"])  # with a single modality nothing can be left out
    row = modalities[
        (modalities["patient"] == "P0") & (modalities["task"] == "MSI") & (modalities["modality"] == "rna")
    ]
    trained = given.models.folds["0-0"]
    case = CASES["test"]["P0"]
    without = Case(**{**vars(case), "omics": {}})
    msi = explained_outputs(trained.targets, "MSI")[0]
    values = [float(Explained.of(trained, one, msi).value()) for one in (case, without)]
    np.testing.assert_allclose(row[["prediction", "without"]].to_numpy()[0], values, rtol=1e-5)
    np.testing.assert_allclose(row["change"], values[0] - values[1], rtol=1e-4)


def test_vectors_of_an_encoder_are_not_called_genes(given: ExplainInputs, tmp_path: Path) -> None:
    few = ExplainParams(slides=0, steps=1, patients=1)
    explain(with_changes(given, params=few, encoder_of_rna="scgpt"), tmp_path)
    assert not (tmp_path / "genes.csv").exists()
    assert (tmp_path / "modalities.csv").exists()
    skipped = json.loads((tmp_path / "settings.json").read_text())["skipped"]
    assert [item["what"] for item in skipped] == ["genes and pathways"]


def test_contributions_of_genes_to_a_linear_model_are_exact() -> None:
    """Log odds linear in genes, directly and through components: w_g x_g, and their sum is the change."""
    axes = RNG.normal(size=(4, 2)).astype(np.float32)
    centre = RNG.normal(size=4).astype(np.float32)
    case = case_of(
        RNG.normal(size=(5, 6)), omics={"rna": np.array([1, -2, 0.5, 3], np.float32)}, columns={"rna": GENES}
    )
    for table in (matrix(), ComponentTransform(matrix(), centre, axes, 2.0)):
        of = targets(table)
        network = model("elastic_net", of).float()
        trained = TrainedFold(network, of, {})
        msi = explained_outputs(of, "MSI")[0]
        one = Explained.of(trained, case, msi)
        tile = RNG.normal(size=6)
        found = table_scores([trained], [one], case, [tile])
        weight = network.heads[0].weight.detach().double().numpy()  # type: ignore[union-attr, index]
        w = (weight[1] - weight[0])[: len(table.names)]
        x = case.omics["rna"].astype(float)
        expected = x * w if table.names == GENES else (x - centre) * (axes @ w) / 2.0
        np.testing.assert_allclose(list(found.columns["rna"].values()), expected, rtol=1e-4, atol=1e-6)
        assert list(found.columns["rna"]) == list(GENES)
        assert found.contributions["rna"] == pytest.approx(expected.sum(), rel=1e-4)
        average = Case(**{**vars(case), "bag": np.tile(tile, (5, 1)).astype(np.float16)})
        batch = Explained.of(trained, average, msi)
        zero = batch.repeated({"rna": torch.zeros(1, len(table.names))})
        change = float(one.value()) - float(batch.value(zero))
        assert sum(found.contributions.values()) == pytest.approx(change, abs=2e-3)


def test_summaries() -> None:
    rows = pd.DataFrame(
        {
            "patient": ["a", "b", "a", "b"],
            "gene": ["x", "x", "y", "y"],
            "score": [1.0, -3, 0.5, 0.5],
            "t": "T",
        }
    )
    table = summarise(rows, ["t", "gene"])
    assert table["gene"].tolist() == ["x", "y"]
    assert table[["n", "mean", "mean_abs"]].to_numpy().tolist() == [[2, -1.0, 2.0], [2, 0.5, 0.5]]
    assert table["sd"].tolist() == [pytest.approx(np.sqrt(8)), 0.0]
    assert by_pathway(rows, {"none": ["z"]}, ["t"]).empty


def test_a_slide_gets_pictures_of_its_ends(
    given: ExplainInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles come from the slide at their place and size; a slide that cannot be opened is said to be so."""

    class Reader:
        def __enter__(self) -> "Reader":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, x: int, y: int, w: float, h: float, out: tuple[int, int]) -> np.ndarray:
            assert (w, h, out) == (200.0, 200.0, (200, 200))
            return np.full((200, 200, 3), x // 10, np.uint8)

    monkeypatch.setattr("equipoise.platform.explain.crops.open_slide", lambda path, mpp, override: Reader())
    explain(with_changes(given, params=QUICK), tmp_path)
    tiles = pd.read_parquet(tmp_path / "tiles.parquet")
    from PIL import Image

    for row in tiles.head(5).itertuples():
        picture = np.asarray(Image.open(tmp_path / row.crop))
        assert picture.shape == (200, 200, 3)
        assert abs(int(picture[100, 100, 0]) - row.x // 10) <= 2


def test_methods_without_a_direction_and_planted_cases(given: ExplainInputs, tmp_path: Path) -> None:
    both = ExplainParams(
        methods=("attention", "single_tile"), slides=1, patients=0, checks=False, pictures=False
    )  # type: ignore[arg-type]
    explain(with_changes(given, params=both), tmp_path)
    names = {path.name for path in list_tile_scores(tmp_path)}
    assert names == {
        f"{t}.{m}.parquet" for t in ("MSI.MSI-H", "subtype.b") for m in ("attention", "single_tile")
    }
    trained = given.models.folds["0-0"]
    (scores,) = explain_case([trained], CASES["test"]["P0"], "MSI", None, Method.named("attention"))
    assert not scores.method.signed


def test_maps_are_drawn_and_go_with_their_scores(given: ExplainInputs, tmp_path: Path) -> None:
    """On blank paper, because the slides are not there, which is said."""
    drawn = ExplainParams(methods=("attention", "single_tile"), slides=("P1",), checks=False, patients=0)  # type: ignore[arg-type]
    given = with_changes(given, params=drawn, tasks=("MSI",))
    explain(given, tmp_path)
    pictures = sorted(tmp_path.glob("P1-1/*.png"))
    assert [path.name for path in pictures] == ["MSI.MSI-H.attention.png", "MSI.MSI-H.single_tile.png"]
    for _ in range(2):
        skipped = json.loads((tmp_path / "settings.json").read_text())["skipped"]
        assert "viewer of P1-1" in [item["what"] for item in skipped]
        explain(given, tmp_path)
    pictures[1].unlink()
    explain(with_changes(given, params=drawn.model_copy(update={"methods": drawn.methods[1:]})), tmp_path)
    assert {path.name.split(".")[2] for path in tmp_path.glob("P1-1/MSI*")} == {"single_tile"}
    assert pictures[1].is_file()


def test_tasks_that_are_explained() -> None:
    assert explained_tasks(None, ["MSI", "OS"]) == ("MSI", "OS")
    assert explained_tasks(["OS"], ["MSI", "OS"]) == ("OS",)

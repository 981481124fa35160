"""The study of preset ``bench`` runs unchanged: bags are imported, models trained, the report written."""

from pathlib import Path

import pandas as pd
import pytest

from equipoise.datasets.atomic_io import read_json
from equipoise.datasets.errors import DataError
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.synthetic import catalogue
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.errors import StudyError, ToleranceError
from equipoise.platform.registry import entries
from equipoise.platform.run import steps
from equipoise.platform.run.folder import STEPS, RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.synthesis import synthesize
from equipoise.platform.study.schema import Study, smoke_overrides


@pytest.fixture(scope="module")
def bench(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Preset ``bench`` with 12 of its 400 patients per cohort, in two of its five cohorts."""
    root = tmp_path_factory.mktemp("bench")
    preset = catalogue.PRESETS_BY_NAME["bench"]
    small = preset.model_copy(
        update={"cohorts": tuple(c.model_copy(update={"patients": 12}) for c in preset.cohorts[:2])}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalogue.PRESETS_BY_NAME, "bench", small)
        synthesize("bench", 7, root, RayOptions())
    return root


def smoke(root: Path, **overrides: object) -> Study:
    study = load_study(root / "study.yaml", overrides)
    return load_study(root / "study.yaml", overrides | smoke_overrides(study))


def test_the_study_of_bench_runs_as_it_is(bench: Path) -> None:
    out = bench / "run"
    steps.run_steps(smoke(bench), RunFolder.open(smoke(bench), str(out), "auto"), STEPS)
    status = read_json(out / "status.json")
    assert all(step["status"] == "done" for step in status["steps"].values())
    slides = pd.read_parquet(out / "manifest" / "slides.parquet")
    assert set(slides["status"]) == {"ok"}
    (store,) = [FeatureStore.open(file.parent) for file in bench.glob("features/*/store.json")]
    assert store.spec.encoder_hash == "imported: equipoise-synthetic-10-64-384"
    assert store.spec.address == status["steps"]["extract"]["features"]
    assert "equipoise-synthetic-10-64-384" in store.path.name
    assert "SYNTHETIC" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_model_of_tiles_takes_slide_vectors(bench: Path, tmp_path: Path) -> None:
    """A patient is then a bag of as many rows as slides; a model with a slide encoder of its own needs the tiles."""
    readers = {
        n: entry for n, entry in entries("models").items() if "wsi" in getattr(entry.params, "reads", ())
    }
    encoding = [n for n, e in readers.items() if "slide_encoders" in e.attribute("components").values()]
    for name in encoding:
        with pytest.raises(StudyError, match="leave features.slide_encoder out"):
            smoke(bench, **{"features.slide_encoder": "mean_std", "model": {"kind": name}})
    names = [name for name in readers if name not in encoding]
    assert {"joint", "mean_pool", "abmil"} <= set(names)
    for name in names:
        vectors = {"features.slide_encoder": "mean_std", "model": {"kind": name}}
        out = tmp_path / name
        study = smoke(bench, **vectors)
        context = steps.RunContext(study, RunFolder(out), only_folds=("0-0",))
        result = steps.extract(context)
        assert result.details["tiles"] == result.details["slides"]
        assert steps.train(context).details["trained"] == 1, name
        assert context.inputs.tiles.spec.dim == 5 * 384
        assert list(out.rglob("preds.parquet"))


def test_validate_opens_no_bag_as_a_slide_and_lost_bags_are_failures(bench: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    context = steps.RunContext(smoke(bench), folder, check_slides=True)
    assert "headers" not in steps.validate(context).details
    lost = smoke(bench, **{"features.imported": "syn-crc-b/features"})
    context = steps.RunContext(lost, folder)
    with pytest.raises(ToleranceError, match="there are no imported features of this name"):
        steps.extract(context)
    with pytest.raises(DataError, match="no such folder"):
        steps.extract(steps.RunContext(smoke(bench, **{"features.imported": "elsewhere"}), folder))

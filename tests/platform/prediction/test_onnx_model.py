"""A model in ONNX gives the scores of torch on bags of any size, or is refused with the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from equipoise.platform.errors import StudyError
from equipoise.platform.prediction import onnx_model
from equipoise.platform.prediction.exported_model import ExportedModel
from equipoise.platform.prediction.onnx_model import write_onnx
from equipoise.platform.run.model_export import export_model
from equipoise.platform.run.steps import RunContext
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.crossval import TrainedFold

pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_the_graph_predicts_patients_as_the_run_did(finished: RunContext, tmp_path: Path) -> None:
    """Every task of an exported model; and nothing of the exporter's machine is in the file."""
    import onnxruntime

    model = export_model(tmp_path / "x", run=finished.folder.root, onnx=True)
    reader = finished.inputs.cases("external")
    patients = tuple(reader)[:6]
    for member, trained in zip(model.config.members, model.members(), strict=True):
        file = model.file(member.file("model.onnx"))
        assert file is not None
        content = file.read_bytes()
        assert b".py" not in content
        assert str(Path.cwd()).encode() not in content
        session = onnxruntime.InferenceSession(content)
        table = trained.predict(CaseList(reader, patients), "external").set_index(
            ["patient", "task", "class"]
        )
        heads = trained.targets.tasks
        for patient in patients:
            bag = reader[patient].bag.astype(np.float32)[None]
            found = session.run(None, {"bags": bag, "mask": np.ones(bag.shape[:2], bool)})
            for task, scores in zip(heads, found, strict=True):
                for name, score in zip(task.classes or ("",), scores[0], strict=True):
                    assert score == pytest.approx(table.loc[patient, task.head.name, name]["score"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["joint", "transmil"])
def test_models_of_tiles(exported: ExportedModel, tmp_path: Path, kind: str) -> None:
    params = {"joint": {"dim": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 8}}
    targets = exported.members()[0].targets
    settings = params.get(kind, {"dim": 8})
    model = build_model(kind, settings, targets.shape, targets.heads, seed=0).eval()
    trained = TrainedFold(model, targets, {})
    if kind == "transmil":  # it reshapes every bag to a square
        with pytest.raises(StudyError, match="transmil cannot be exported to ONNX: torch cannot write it"):
            write_onnx(trained, kind, ["wsi"], tmp_path / "m.onnx")
        assert not (tmp_path / "m.onnx").exists()
    else:
        assert write_onnx(trained, kind, ["wsi"], tmp_path / "m.onnx") <= 1e-4


@pytest.mark.slow
def test_a_graph_that_gives_other_scores_is_not_kept(
    exported: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_model.bag_scorer
    trained = exported.members()[0]
    scaled = [
        replace(task, scaler=replace(task.scaler, shift=task.scaler.shift + 1)) if task.scaler else task
        for task in trained.targets.tasks
    ]
    other = replace(trained, targets=replace(trained.targets, tasks=tuple(scaled)))
    found: list[object] = []

    def scorer(of: TrainedFold):
        found.append(of)
        return real(other)

    wrapped = real(trained)
    compare = onnx_model.largest_difference
    monkeypatch.setattr(onnx_model, "bag_scorer", scorer)
    monkeypatch.setattr(
        onnx_model, "largest_difference", lambda _, file, width: compare(wrapped, file, width)
    )
    with pytest.raises(StudyError, match="differ by"):
        write_onnx(trained, "abmil", ["wsi"], tmp_path / "m.onnx")
    assert found == [trained]
    assert not (tmp_path / "m.onnx").exists()


def test_models_of_tables_are_refused(exported: ExportedModel, tmp_path: Path) -> None:
    trained = exported.members()[0]
    with pytest.raises(StudyError, match="it reads wsi, rna, and an ONNX model gets tiles alone"):
        write_onnx(trained, "concat", ["wsi", "rna"], tmp_path / "m.onnx")

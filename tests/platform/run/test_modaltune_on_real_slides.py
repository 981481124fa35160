"""Real slides through extraction and store into a step of ModalTune."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from equipoise.models.losses import TaskLosses
from equipoise.models.modaltune.model import ModalTune
from equipoise.platform.extraction.sources import obtain_features
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.build import build_model, recipe_of
from equipoise.platform.training.targets import fit_targets

STUDY = """\
version: 1
name: real
cohorts:
  - {name: R, role: develop, clinical: clinical.csv, slides: slides.csv, slides_dir: SLIDES}
tasks:
  - {name: kind, type: multiclass, column: KIND, classes: [A, B], main: true}
  - {name: OS, type: survival, time: {column: T, unit: days}, event: {column: E, event_value: 1}}
tables: {clinical: [{column: AGE, type: number}]}
features: {store: store}
model:
  kind: modaltune
  slide_encoder_params: {width: 32, depth: 3}
  bottleneck: 12
  attention_heads: 2
  embedding: 16
training: {text: {dim: 16}}
"""


@pytest.mark.real
def test_two_slides_become_a_step(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("SLIDES", str(shared_data / "slides")))
    # The same tissue in another file that states its pixel size a hundred times too small; the third has no slide.
    slides = ["0,CMU-1-Small-Region.svs,", "1,wsic-CMU-1-Small-Region.jpeg.tiff,0.499"]
    (tmp_path / "slides.csv").write_text("\n".join(["PATIENT,FILENAME,MPP", *slides]) + "\n")
    rows = ["0,A,61,400,1", "1,B,,900,0", "2,B,70,200,1"]
    (tmp_path / "clinical.csv").write_text("\n".join(["PATIENT,KIND,AGE,T,E", *rows]) + "\n")
    study = load_study(tmp_path / "study.yaml", {})
    context = RunContext(study, RunFolder(tmp_path / "run"))
    summary = obtain_features(
        context.cohorts.slides, study.features, context.store_root, study.base, workers=0
    )
    assert (summary.failed, summary.tiles) == (0, 56 + 55)

    cases = context.inputs.cases("develop")
    assert [len(cases[name].bag) for name in cases] == [56, 55, 0]
    train = CaseList(cases, tuple(cases))
    recipe = recipe_of(study)
    targets = fit_targets(study.tasks, train, tables=recipe.tables, text=recipe.training.text)
    model = build_model(recipe.model, recipe.model_params, targets.shape, targets.heads, seed=1)
    assert isinstance(model, ModalTune)
    encoder = model.frozen_digest()
    batch = collate([cases[name] for name in cases], targets)
    # One optimiser step moves the scale of what is injected from zero, so that the second has every gradient.
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        losses = TaskLosses(targets.heads, targets.class_weights)(
            model(batch), batch.targets, batch.label_mask, batch.cohort
        )
        losses.means().sum().backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    moved = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() == 0]
    assert not [name for name in moved if "attend" in name or "injector" in name], moved
    assert model.frozen_digest() == encoder
    with torch.no_grad():
        outputs = model.eval()(batch)["kind"]
    assert torch.isfinite(outputs).all()
    assert not torch.allclose(outputs[0], outputs[2])

"""The step ``pretrain``: one model for many cohorts and tasks, as a start or a slide encoder for other studies.

All patients of the chosen cohorts are used: a share of each cohort for early stopping, the others to learn from, none
as a test. The training is a fold of the one training loop, so that it resumes, runs on several workers and is balanced
like any other. ``pretrain/`` of the run folder holds ``training/0-0``, that fold, and ``model``, the folder that other
studies name.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import atomic_path, read_json
from equipoise.datasets.cohorts.seen import Seen, SeenPart
from equipoise.datasets.cohorts.whole_fold import fold_without_test
from equipoise.models.pretrained_folder import CONFIG, PretrainedFolder, read_pretrained, write_pretrained
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.fingerprints import content_hash, require_same
from equipoise.platform.run.seen_patients import seen_by_parts
from equipoise.platform.study.schema import Study

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.training.inputs import StudyInputs
    from equipoise.platform.training.params import PretrainParams

log = logging.getLogger("equipoise")

TRAINING, MODEL = "training", "model"
#: A mean loss of validation patients above this share of that of a constant says that nothing was learned.
_MOST_RELATIVE_LOSS = 0.99


@dataclass(frozen=True)
class PretrainedModel:
    """A pre-trained model in its folder.

    Attributes
    ----------
    folder
        What the folder says.
    """

    folder: PretrainedFolder

    def fields(self) -> dict[str, Any]:
        """Details of the step."""
        record = self.folder.record
        fields: dict[str, Any] = {"model": self.folder.path, "fingerprint": self.folder.fingerprint}
        fields |= {"patients": sum(record["cohorts"].values()), "cohorts": len(record["cohorts"])}
        fields |= {"tasks": len(self.folder.tasks), "relative_loss": record["relative_loss"]}
        return fields | ({"synthetic": True} if record["synthetic"] else {})

    def text(self) -> str:
        """For a person: what was trained on whom, and what to write into a study."""
        record, folder = self.folder.record, self.folder
        label = " (SYNTHETIC)" if record["synthetic"] else ""
        cohorts = ", ".join(f"{name} {count}" for name, count in record["cohorts"].items())
        loss = record["relative_loss"]
        shown = "not known" if loss is None else f"{loss:.3f}"
        return (
            f"{folder.model} pre-trained on {cohorts} patients{label}, tasks {', '.join(folder.tasks)}; epoch "
            f"{record['best_epoch']} of {record['epochs']}, inner validation: {shown} of the loss of a constant\n"
            f"next: training: {{start: {folder.path}}}\n"
            f"  or: features: {{slide_encoder: pretrained, slide_encoder_params: {{folder: {folder.path}}}}}"
        )


def pretrain(study: Study, params: PretrainParams, inputs: StudyInputs, out: Path) -> PretrainedModel:
    """Train the model of a study on all patients of the chosen cohorts; what is done is not done again.

    Parameters
    ----------
    study, params
        The study and its section ``pretrain``.
    inputs
        Patients and tiles.
    out
        ``pretrain/`` of the run folder.

    Raises
    ------
    DataError
        If a cohort has no usable patient, or the patients cannot be learned from.
    StudyError
        If the folder holds another training.
    """
    from equipoise.platform.extraction.slide_vectors import trained_tiles
    from equipoise.platform.training.build import recipe_of
    from equipoise.platform.training.crossval import fold_folder, train_fold
    from equipoise.platform.training.epoch_log import EpochLog
    from equipoise.platform.training.folds import run_folds

    if inputs.tiles is None:
        raise StudyError(
            "there is no slide to learn from: no cohort names a slides table",
            where=str(study.file),
            fix="add slides: and slides_dir: to the cohorts",
        )
    patients = _patients(params, inputs)
    fold = fold_without_test(patients, study.tasks, params.inner_val, study.seed)
    recipe = recipe_of(study)
    recipe = recipe.model_copy(update={"training": params.training(recipe.training)})
    if study.training.members > 1:
        log.info("pretrain: one model is trained, not training.members: %d", study.training.members)
    job = partial(
        train_fold,
        fold,
        study.tasks,
        inputs.cases("develop"),
        recipe,
        out / TRAINING,
        features=inputs.features,
        content_keys=inputs.content_keys,
        report=EpochLog(out / "tb", "pretrain", study.training.epochs),
    )
    # Also where the fold is done: it is compared with what is asked for.
    run_folds([job], recipe.training, study.resources)
    trained = fold_folder(out / TRAINING, fold)
    config = read_json(trained / "config.json")
    if (out / MODEL).exists():
        return _existing(out / MODEL, config["made_by"])
    seen = SeenPart.of(
        [*fold.train, *fold.val],
        _slide_files(inputs, {*fold.train, *fold.val}),
        "" if params.plain_ids else content_hash([str(config["made_by"])]),
    )
    before = [earlier for part in seen_by_parts(study).values() for earlier in part.parts]
    record = {
        "made_by": config["made_by"],
        "made_with": config["made_with"],
        "synthetic": study.synthetic,
        "cohorts": {
            str(name): int(count) for name, count in patients["cohort"].value_counts(sort=False).items()
        },
        "patients": {part: len(getattr(fold, part)) for part in ("train", "val")},
        "epochs": config["epochs"],
        "best_epoch": config["best_epoch"],
        "balancing": recipe.balancing.name,
        "relative_loss": _relative_loss(trained, config["best_epoch"]),
    }
    return PretrainedModel(
        _write(
            out / MODEL,
            trained,
            recipe.model,
            trained_tiles(inputs.tiles.spec),
            record,
            Seen((seen, *before)),
        )
    )


def _patients(params: PretrainParams, inputs: StudyInputs) -> pd.DataFrame:
    """Development patients of the chosen cohorts."""
    patients = inputs.cohorts.patients
    develop = patients[patients["role"] == "develop"]
    if params.cohorts is None:
        return develop
    if empty := [name for name in params.cohorts if name not in set(develop["cohort"])]:
        raise DataError(
            f"no patient of {', '.join(empty)} can be used",
            where="pretrain.cohorts",
            fix="manifest/exclusions.csv says why",
        )
    return develop[develop["cohort"].isin(params.cohorts)]


def _slide_files(inputs: StudyInputs, patients: set[str]) -> list[str]:
    """Fingerprints of the slide files of these patients."""
    assert inputs.tiles is not None
    slides = inputs.cohorts.slides.merge(inputs.tiles.index()[["slide", "fingerprint"]], on="slide")
    return slides.loc[slides["patient"].isin(patients), "fingerprint"].fillna("").astype(str).tolist()


def _relative_loss(trained: Path, epoch: int) -> float | None:
    """Mean over tasks of the validation loss at this epoch, relative to that of the best constant."""
    import csv

    with (trained / "history.csv").open(newline="", encoding="utf-8") as file:
        value = list(csv.DictReader(file))[epoch - 1].get("monitor/mean_loss")
    loss = float(value) if value else float("nan")
    if loss > _MOST_RELATIVE_LOSS:
        log.warning(
            "pretrain: tasks of validation patients are predicted hardly better than by a constant (%.3f of its loss)",
            loss,
        )
    return None if loss != loss else round(loss, 6)


def _existing(model: Path, made_by: dict[str, Any]) -> PretrainedModel:
    folder = read_pretrained(model)
    fix = "remove it to write it again"
    require_same(folder.record["made_by"], made_by, "the folder holds another model", where=model, fix=fix)
    return PretrainedModel(folder)


def _write(
    model: Path, trained: Path, kind: str, tiles: Any, record: dict[str, Any], seen: Seen
) -> PretrainedFolder:
    """The folder of the model out of that of the fold, whole or not at all."""
    from safetensors.torch import load_file

    targets = read_json(trained / "targets.json")
    with atomic_path(model) as temporary:
        write_pretrained(
            temporary,
            load_file(trained / "model.safetensors"),
            model=kind,
            model_params=record["made_by"]["model_params"],
            tiles=tiles,
            tasks=tuple(task["name"] for task in targets["tasks"]),
            record=record,
            seen=seen.to_json(),
        )
    assert (model / CONFIG).is_file()
    return read_pretrained(model)

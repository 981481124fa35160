"""What an exported model is, as a few lines for a person."""

from __future__ import annotations

from equipoise.platform.prediction.exported_model import ExportedModel


def description(model: ExportedModel) -> str:
    """Name, models, tasks with their thresholds, inputs, files that are needed, and the folder's SHA-256."""
    config = model.config
    mark = " (SYNTHETIC)" if config.synthetic else ""
    how = (
        f"ensemble of {len(config.members)} fold models"
        if config.combined == "ensemble"
        else "one model of all development patients"
    )
    lines = [f"model {config.name}{mark}: {config.kind}, {how}"]
    lines.append(f"  licence: {config.license or 'not stated'}")
    for task in config.tasks:
        points = model.points.tasks[task.name]
        known = [value for value in points.cutoffs.values() if value is not None]
        called = f", called at {sum(known) / len(known):.3f}" if known else ""
        days = f", survival at {', '.join(map(str, points.horizons))} days" if points.horizons else ""
        lines.append(f"  predicts {task.name} ({task.type}){called}{days}")
    if config.features is not None:
        tiles = config.features.tiles
        lines.append(
            f"  reads slides: {tiles.encoder} {tiles.encoder_hash[:12]}, {tiles.mpp:g} um/px, "
            f"tiles of {tiles.tile_px} px"
        )
    if config.tables.modalities:
        lines.append(f"  reads tables: {', '.join(config.tables.modalities)}")
    lines += [f"  needs --file {file.key}=PATH ({file.name})" for file in config.local_files]
    trust = "conformal sets, drift check and abstention" if model.trust() is not None else "nothing"
    lines.append(f"  says of its own reliability: {trust}")
    lines.append(f"  sha256 {model.sealed.sha256}")
    return "\n".join(lines)

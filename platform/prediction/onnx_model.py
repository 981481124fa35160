"""A tile-bag model in ONNX: bags and masks in, scores out, for programs that know neither torch nor Equipoise.

``bags`` is ``[B, N, D]`` float32 with any numbers of patients and tiles, ``mask`` ``[B, N]`` booleans, true where a
tile exists; every patient has one. There is one output per task, ``[B, K]``: probabilities of the named classes, values
in the unit of the training table, risks of this one model. Tables, places of tiles and hidden states are no inputs: a
model that reads them cannot be exported. What was written is run by onnxruntime and compared with torch before it is
kept.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.platform.errors import ResourceError, StudyError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from equipoise.platform.training.crossval import TrainedFold

#: Largest difference of a score from torch, relative to 1 + its size.
TOLERANCE = 1e-4
#: (patients, tiles) of the bags on which both are compared; some tiles of bags with several patients are padding.
CHECKED = ((1, 1), (1, 2), (2, 7), (1, 65), (3, 130), (1, 513))


def write_onnx(trained: TrainedFold, kind: str, reads: Sequence[str], file: Path) -> float:
    """Write one trained model, and compare it with torch.

    Parameters
    ----------
    trained
        The model, on the CPU.
    kind, reads
        Name of the model, and the modalities that it reads.
    file
        ``model.onnx``.

    Returns
    -------
    The largest difference, relative to 1 + the size of the score.

    Raises
    ------
    StudyError
        If the model reads more than tiles, cannot be written as a graph, or gives other scores there.
    ResourceError
        Without the extra ``onnx``.
    """
    _require_packages()
    if list(reads) != ["wsi"]:
        raise _refusal(kind, f"it reads {', '.join(reads)}, and an ONNX model gets tiles alone")
    import torch

    wrapped = bag_scorer(trained)
    width = trained.targets.shape.features
    example = bags(2, 70, width)
    batch, tiles = (
        torch.export.Dim("batch", min=1, max=1 << 16),
        torch.export.Dim("tiles", min=1, max=1 << 20),
    )
    names = [head.name for head in trained.targets.heads]
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            torch.onnx.export(
                wrapped,
                example,
                str(file),
                dynamo=True,
                input_names=["bags", "mask"],
                output_names=names,
                dynamic_shapes=({0: batch, 1: tiles}, {0: batch, 1: tiles}),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of torch.export, which has many kinds of them
        file.unlink(missing_ok=True)
        raise _refusal(kind, f"torch cannot write it as a graph ({_first_line(error)})") from error
    finally:
        quiet.setLevel(level)
    _without_places(file)
    worst = largest_difference(wrapped, file, width)
    if not worst <= TOLERANCE:
        file.unlink()
        raise _refusal(kind, f"its scores in onnxruntime differ by {worst:.2g} from those of torch")
    return worst


def bag_scorer(trained: TrainedFold) -> nn.Module:
    """A module from bags and mask to the scores of every task."""
    import torch
    from torch import nn

    from equipoise.models.batch import CaseBatch
    from equipoise.platform.training.targets import TaskTarget

    class BagScorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = trained.model

        def forward(self, bag_BND: Tensor, mask_BN: Tensor) -> tuple[Tensor, ...]:
            nobody = torch.zeros_like(bag_BND[:, 0, 0], dtype=torch.int64) - 1
            batch = CaseBatch(
                bags=bag_BND.masked_fill(~mask_BN[..., None], 0.0),
                mask=mask_BN,
                coords=torch.zeros_like(bag_BND[..., :2], dtype=torch.int32),
                omics={},
                present={},
                targets={},
                label_mask={},
                site=nobody,
                cohort=nobody,
                padded=True,  # a graph is for every mask, whatever the example's
                tileless=False,
            )
            outputs = self.model(batch)
            return tuple(scores(task, outputs[task.head.name]) for task in trained.targets.tasks)

    def scores(task: TaskTarget, out_BK: Tensor) -> Tensor:
        """:func:`~equipoise.platform.training.predict.task_scores` in torch."""
        from equipoise.models.hazards import hazard_risk

        head = task.head
        if head.kind == "binary":
            return out_BK.softmax(dim=1)[:, 1:]
        if head.kind == "multiclass":
            return out_BK.softmax(dim=1)
        if head.kind == "regression":
            return out_BK if task.scaler is None else out_BK * task.scaler.scale + task.scaler.shift
        if head.text is not None:
            place = torch.arange(head.outputs, dtype=out_BK.dtype)
            return -(out_BK.softmax(dim=1) * place).sum(dim=1, keepdim=True)
        return out_BK if head.edges is None else hazard_risk(out_BK)

    return BagScorer().eval()


def bags(patients: int, tiles: int, width: int) -> tuple[Any, Any]:
    """Random bags and a mask; the last tiles of all but the first patient are padding."""
    import torch

    generator = torch.Generator().manual_seed(1000 * patients + tiles)
    bag_BND = torch.randn(patients, tiles, width, generator=generator)
    mask_BN = torch.ones(patients, tiles, dtype=torch.bool)
    for patient in range(1, patients):
        mask_BN[patient, max(1, tiles - 3 * patient) :] = False
    return bag_BND, mask_BN


def largest_difference(wrapped: nn.Module, file: Path, width: int) -> float:
    """Between torch and onnxruntime over bags of several sizes, relative to 1 + the size of the score."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for patients, tiles in CHECKED:
        bag_BND, mask_BN = bags(patients, tiles, width)
        with torch.no_grad():
            expected = [out.numpy() for out in wrapped(bag_BND, mask_BN)]
        found = session.run(None, {"bags": bag_BND.numpy(), "mask": mask_BN.numpy()})
        for a, b in zip(expected, found, strict=True):
            if a.shape != b.shape or not np.isfinite(b).all():
                return float("inf")
            worst = max(worst, float((np.abs(a - b) / (1 + np.abs(a))).max()))
    return worst


def _without_places(file: Path) -> None:
    """Remove what the exporter notes of the source code: paths of this machine."""
    import onnx

    model = onnx.load(str(file))
    for part in (model, model.graph, *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
        for value in graph.value_info:
            value.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString(deterministic=True))


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            f"an export to ONNX needs the package {error.name}",
            where="--onnx",
            fix="pip install -e '.[onnx]'",
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


def _refusal(kind: str, reason: str) -> StudyError:
    return StudyError(
        f"model {kind} cannot be exported to ONNX: {reason}", where="--onnx", fix="export it without --onnx"
    )

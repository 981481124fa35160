"""Models and cases of the tests of attribution: in float64, so that oracles can be exact."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.targets import TargetScaler
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.platform.explain.explained import Explained
from equipoise.platform.explain.outputs import ExplainedOutput, explained_outputs
from equipoise.platform.training.build import build_model
from equipoise.platform.training.targets import Targets, TaskTarget

TASKS = (
    TaskTarget(TaskHead("MSI", "binary", 2, main=True), ("MSI-H",)),
    TaskTarget(TaskHead("subtype", "multiclass", 3), ("a", "b", "c")),
    TaskTarget(TaskHead("LISS", "regression", 1), scaler=TargetScaler("standard", 2.0, 5.0)),
    TaskTarget(TaskHead("OS", "survival", 1)),
    TaskTarget(TaskHead("PFS", "survival", 3, edges=(100.0, 300.0))),
)
#: Small sizes of every model that reads tiles.
MODELS: dict[str, dict[str, Any]] = {
    "mean_pool": {"layers": 1, "dim": 7},
    "abmil": {"dim": 8, "hidden": 5},
    "transmil": {"dim": 8, "heads": 2, "landmarks": 4},
    "joint": {"dim": 8, "heads": 2, "feedforward": 8, "encoder_layers": 1, "decoder_layers": 1},
    "elastic_net": {},
    "concat": {"dim": 6, "hidden": 5, "layers": 1},
    "gptomic": {"dim": 6, "image_params": {"dim": 8, "hidden": 5}},
    "modaltune": {
        "bottleneck": 8,
        "attention_heads": 2,
        "slide_encoder_params": {"width": 16, "depth": 3, "heads": 2},
    },
}
#: Those that read a table, too.
WITH_TABLES = ("elastic_net", "concat", "gptomic", "modaltune")


def targets(features: int, omics: dict[str, int] | None = None) -> Targets:
    """Five tasks, of every kind."""
    return Targets(TASKS, CaseShape(features, omics or {}))


def model(kind: str, of: Targets, seed: int = 0, **params: Any) -> nn.Module:
    """A small model with random weights, in float64 and evaluation mode."""
    made = build_model(kind, MODELS.get(kind, {}) | params, of.shape, of.heads, seed=seed).double().eval()
    if kind == "elastic_net":  # its heads start at zero
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for parameter in made.parameters():
                nn.init.normal_(parameter, std=0.1)
    for part in getattr(getattr(made, "frozen", None), "_networks", ()):
        part.double()
    return made


def batch_of(tiles: int, features: int, omics: dict[str, int] | None = None, seed: int = 0) -> CaseBatch:
    """A case with tiles on a row."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(0.3, 1, (1, tiles, features)))
    xy = torch.tensor([[[i * 10, 0] for i in range(tiles)]], dtype=torch.int32)
    rows = {name: torch.from_numpy(rng.normal(0, 1, (1, width))) for name, width in (omics or {}).items()}
    return CaseBatch(
        bags=x,
        mask=torch.ones(1, tiles, dtype=torch.bool),
        coords=xy,
        omics=rows,
        present={name: torch.ones(1, dtype=torch.bool) for name in rows},
        targets={},
        label_mask={},
        site=torch.zeros(1, dtype=torch.int64),
        corners=xy.double() * 10,
        extent=torch.full((1,), 100.0, dtype=torch.float64),
    )


def output(task: str = "MSI", class_name: str | None = None) -> ExplainedOutput:
    """What is explained; the first class if none is named."""
    return explained_outputs(targets(1), task, class_name)[0]


def explained(
    kind: str, task: str = "MSI", tiles: int = 9, features: int = 4, seed: int = 0, **params: Any
) -> Explained:
    """A small model and a case, with a table where the model reads one."""
    omics = {"rna": 5} if kind in WITH_TABLES else None
    made = model(kind, targets(features, omics), seed, **params)
    return Explained(made, batch_of(tiles, features, omics, seed), output(task))


def case_of(bag: np.ndarray, patient: str = "P1", **changes: Any) -> Case:
    """A patient with one slide of these tile features, on a row, 100 um wide at 0.5 um per pixel."""
    values: dict[str, Any] = {
        "patient": patient,
        "cohort": "C",
        "site": "S",
        "bag": bag.astype(np.float16),
        "coords": np.stack([200 * np.arange(len(bag)), np.zeros(len(bag))], axis=1).astype(np.int32),
        "slides": (f"{patient}-1",),
        "tiles": (len(bag),),
        "omics": {},
        "targets": {},
        "mpp": (0.5,),
        "extent": 100.0,
    }
    return Case(**(values | changes))


class Dot(nn.Module):
    """Log odds linear in the mean tile, by hand: weights in float64, no other parameter."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, batch: CaseBatch) -> dict[str, Tensor]:
        """MSI alone; the negative logit is 0."""
        mean = (batch.bags * batch.mask[..., None]).sum(dim=1) / batch.mask.sum(dim=1, keepdim=True)
        margin = mean.to(self.weights) @ self.weights
        return {"MSI": torch.stack([torch.zeros_like(margin), margin], dim=1)}

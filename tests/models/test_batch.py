"""CaseBatch and TaskHead refuse what cannot be true."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from equipoise.models.batch import CaseBatch, TaskHead


def parts(b: int = 2, n: int = 3, d: int = 4) -> dict:
    return {
        "bags": torch.randn(b, n, d),
        "mask": torch.ones(b, n, dtype=torch.bool),
        "coords": torch.zeros(b, n, 2, dtype=torch.int32),
        "omics": {"rna": torch.zeros(b, 5)},
        "present": {"rna": torch.ones(b, dtype=torch.bool)},
        "targets": {"MSI": torch.zeros(b)},
        "label_mask": {"MSI": torch.ones(b, dtype=torch.bool)},
        "site": torch.zeros(b, dtype=torch.int64),
        "cohort": torch.zeros(b, dtype=torch.int64),
    }


def test_key_mask_is_none_without_padding() -> None:
    full = CaseBatch(**parts())
    assert len(full) == 2
    assert full.key_mask is None
    holes = parts()
    holes["mask"][1, 2] = False
    assert CaseBatch(**holes).key_mask is holes["mask"]


def test_to_moves_every_tensor_and_keeps_padding() -> None:
    holes = parts()
    holes["mask"][1, 2] = False
    moved = CaseBatch(**holes).to("meta")
    tensors = [moved.bags, moved.mask, moved.coords, moved.site, moved.cohort]
    tensors += [
        t for part in (moved.omics, moved.present, moved.targets, moved.label_mask) for t in part.values()
    ]
    assert {t.device.type for t in tensors} == {"meta"}
    assert moved.padded is True


def test_batch_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CaseBatch(**parts()).bags = torch.zeros(1)  # type: ignore[misc]


def test_a_case_without_tiles_is_for_models_that_can_read_it() -> None:
    holes = parts()
    holes["mask"][1] = False
    batch = CaseBatch(**holes)
    assert batch.tileless is True
    assert batch.to("meta").tileless is True
    with pytest.raises(ValueError, match="has no tile, and the model reads tiles only"):
        _ = batch.key_mask
    assert CaseBatch(**parts()).tileless is False


def test_a_batch_may_have_no_tiles_at_all() -> None:
    assert CaseBatch(**parts(n=0, d=0)).tileless is True


@pytest.mark.parametrize("part", ["rna", "MSI", "site", "cohort"])
def test_rows_must_agree(part: str) -> None:
    wrong = parts()
    if part in ("site", "cohort"):
        wrong[part] = torch.zeros(3, dtype=torch.int64)
    else:
        wrong["omics" if part == "rna" else "targets"][part] = torch.zeros(3)
    with pytest.raises(ValueError, match=f"{part}: not 2 rows"):
        CaseBatch(**wrong)


def test_mask_must_fit_bags() -> None:
    with pytest.raises(ValueError, match="shapes do not fit"):
        CaseBatch(**(parts() | {"mask": torch.ones(2, 4, dtype=torch.bool)}))


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("binary", 1), ("binary", 3), ("multiclass", 1), ("survival", 2), ("regression", 0)],
)
def test_heads_of_the_wrong_width_are_refused(kind: str, outputs: int) -> None:
    with pytest.raises(ValueError, match=f"'T': a {kind} head cannot have {outputs} outputs"):
        TaskHead("T", kind, outputs)  # type: ignore[arg-type]


def test_strata_belong_to_cox() -> None:
    assert TaskHead("OS", "survival", 1, stratified=True).compares_patients
    with pytest.raises(ValueError, match="only Cox's likelihood has strata"):
        TaskHead("OS", "survival", 2, edges=(300.0,), stratified=True)
    with pytest.raises(ValueError, match="only Cox's likelihood has strata"):
        TaskHead("MSI", "binary", 2, stratified=True)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'ranking' is not one of binary, multiclass"):
        TaskHead("T", "ranking", 1)  # type: ignore[arg-type]

"""Parameters of the models a study can name."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from equipoise.models.entries import ENTRIES, JointParams


def test_defaults_are_the_published_sizes() -> None:
    assert JointParams().model_dump() == {
        "dim": 384,
        "heads": 6,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "feedforward": 768,
        "dropout": 0.1,
    }


def test_heads_must_divide_dim() -> None:
    with pytest.raises(ValidationError, match="dim 256 is not divisible by heads 6; for example dim: 384"):
        JointParams(dim=256)


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        JointParams.model_validate({"layers": 2})


def test_listing_models_does_not_import_torch() -> None:
    modules = "equipoise.models.entries, equipoise.models.balancing.entries"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "joint" in ENTRIES


def test_every_model_says_what_it_reads() -> None:
    reads = {name: params.reads for name, (_, params, _) in ENTRIES.items()}
    assert reads["joint"] == {"wsi"}
    assert reads["clinical"] == {"clinical"}
    assert reads["omics"] == {"rna", "cnv", "mutation"}
    assert reads["concat"] == {"wsi", "clinical", "rna", "cnv", "mutation"}
    assert len(ENTRIES) > 0
    for name, (_, params, _) in ENTRIES.items():
        if (chosen := params.model_fields.get("modalities")) is not None:
            for modality in reads[name]:
                assert params(modalities=[modality]).modalities == (modality,)
            assert chosen.default is None
    with pytest.raises(ValidationError, match="at least 1"):
        ENTRIES["omics"][1](modalities=[])

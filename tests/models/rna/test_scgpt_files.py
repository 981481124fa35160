"""Strict and safe reading of scGPT's folder: both namings of attention, and every way in which it can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise.models.rna import scgpt_files
from equipoise.models.rna.entries import ScGptParams
from equipoise.models.rna.scgpt import ScGpt
from equipoise.models.rna.scgpt_files import ARGS, VOCABULARY, WEIGHTS, read_folder

Write = Callable[..., Path]
GENES = [f"GENE{i}" for i in range(60)]

pytestmark = pytest.mark.filterwarnings("ignore:.*differ from the published")


def flash(state: dict[str, Tensor], attention: str, prefix: str = "") -> dict[str, Tensor]:
    """The state under the names that flash-attention gives."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("self_attn.in_proj_", f"self_attn.{attention}Wqkv.")
        if attention:
            name = name.replace("self_attn.out_proj.", f"self_attn.{attention}out_proj.")
        renamed[prefix + name] = tensor
    return renamed


@pytest.mark.parametrize(
    ("attention", "prefix"), [("", ""), ("_impl.", ""), ("", "module."), ("_impl.", "module.")]
)
def test_names_of_flash_attention_mean_the_same_network(
    state: dict[str, Tensor], write_folder: Write, attention: str, prefix: str
) -> None:
    named = flash(state, attention, prefix)
    assert set(named) != set(state)
    profile = np.random.default_rng(0).gamma(1.0, 9.0, (1, 60)).astype(np.float32)
    plain, renamed = (
        ScGpt(ScGptParams(folder=str(write_folder(each)))).encode(profile, GENES, kind="counts", seed=0)
        for each in (state, named)
    )
    np.testing.assert_array_equal(renamed, plain)


def test_half_precision_is_read_as_float32(state: dict[str, Tensor], write_folder: Write) -> None:
    halves = {name: tensor.half() for name, tensor in state.items()}
    network = ScGpt(ScGptParams(folder=str(write_folder(halves))))._network
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s.pop("transformer_encoder.layers.1.norm2.bias"),
            r"1 missing \(transformer_encoder\.layers\.1\.nor",
        ),
        (lambda s: s.pop("encoder.embedding.weight"), r"1 missing \(encoder\.embedding\.weight\)"),
        (
            lambda s: s.update({"value_encoder.linear1.weight": torch.zeros(32, 2)}),
            r"1 of another shape \(value_encoder\.linear1\.weight \[32, 2\] instead of \[32, 1\]\)",
        ),
        (
            lambda s: s.update({"encoder.embedding.weight": torch.zeros(70, 32)}),
            r"encoder\.embedding\.weight \[70, 32\] instead of \[63, 32\]",
        ),
        (
            lambda s: s.update({"transformer_encoder.layers.3.linear1.bias": torch.zeros(48)}),
            r"1 tensors have no place in the network of args\.json \(transformer_encoder\.layers\.3",
        ),
        (
            lambda s: s.update({"module.encoder.enc_norm.bias": torch.zeros(32)}),
            r"module\.encoder\.enc_norm\.bias stands there under two names",
        ),
        (lambda s: s.update({"bn.weight": torch.ones(32)}), r"bn\.weight belongs to a part for batch labels"),
        (lambda s: s.update({"epoch": 3}), "holds other things than named tensors"),
    ],
)
def test_other_weights_are_refused(
    state: dict[str, Tensor], write_folder: Write, change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    change(state)
    with pytest.raises(ValueError, match=said):
        ScGpt(ScGptParams(folder=str(write_folder(state))))


def test_a_tensor_of_no_known_decoder_is_named(state: dict[str, Tensor], write_folder: Write) -> None:
    state["surprise.weight"] = torch.zeros(2)
    with pytest.warns(UserWarning, match=r"not read, unknown: surprise\.weight \(1\)"):
        ScGpt(ScGptParams(folder=str(write_folder(state))))


class Harmful:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("executed",)


def test_a_pickle_is_not_executed(
    state: dict[str, Tensor], write_folder: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(state | {"encoder.enc_norm.bias": Harmful()})
    with pytest.raises(ValueError, match=r"cannot be read as weights.*\ndownload the file again"):
        ScGpt(ScGptParams(folder=str(folder)))
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"nlayers": 0}, r"no whole number for nlayers"),
        ({"embsize": None}, r"no whole number for embsize"),
        ({"nheads": 5}, r"embsize 32 is no multiple of nheads 5"),
        ({"input_emb_style": "category"}, "input_emb_style 'category' is not built here"),
        ({"pre_norm": True}, "pre_norm is not built here"),
        (
            {"nlayers": 4},
            r"12 missing \(transformer_encoder\.layers\.3",
        ),
    ],
)
def test_other_configurations_are_refused(
    state: dict[str, Tensor], write_folder: Write, args: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ScGpt(ScGptParams(folder=str(write_folder(state, **args))))


def test_special_tokens_are_appended_where_the_vocabulary_lacks_them(
    state: dict[str, Tensor], write_folder: Write
) -> None:
    genes = {gene: i for i, gene in enumerate(GENES)}
    folder = read_folder(write_folder(state, genes))
    assert {token: folder.vocabulary[token] for token in ("<pad>", "<cls>", "<eoc>")} == {
        "<pad>": 60,
        "<cls>": 61,
        "<eoc>": 62,
    }
    with pytest.raises(ValueError, match="tokens are not numbered 0, 1, 2"):
        read_folder(write_folder(state, {"A": 0, "B": 2}))


def test_special_tokens_are_no_genes(state: dict[str, Tensor], write_folder: Write) -> None:
    encoder = ScGpt(ScGptParams(folder=str(write_folder(state))))
    assert encoder.knows(["GENE1", "<cls>", "<pad>"]).tolist() == [True, False, False]


def test_missing_files_are_named(state: dict[str, Tensor], write_folder: Write, tmp_path: Path) -> None:
    folder = write_folder(state)
    (folder / VOCABULARY).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no vocab\.json\nname the folder that holds args\.json"):
        read_folder(folder)
    (folder / VOCABULARY).write_text("[1]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        read_folder(folder)


def test_published_files_are_known_and_others_warned_about(
    state: dict[str, Tensor], write_folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {file: len(known) for file, known in scgpt_files.PUBLISHED.items()} == {
        ARGS: 64,
        VOCABULARY: 64,
        WEIGHTS: 64,
    }
    folder = write_folder(state)
    with pytest.warns(
        UserWarning, match=r"args\.json, vocab\.json, best_model\.pt differ from the published"
    ):
        ScGpt(ScGptParams(folder=str(folder)))
    monkeypatch.setattr(scgpt_files, "PUBLISHED", read_folder(folder).hashes)
    assert read_folder(folder).published
    (folder / ARGS).write_text(json.dumps(json.loads((folder / ARGS).read_text()) | {"dropout": 0.1}))
    with pytest.warns(UserWarning, match=r": args\.json differ from the published"):
        ScGpt(ScGptParams(folder=str(folder)))

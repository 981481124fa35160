"""The official folder of scGPT: ``args.json``, ``vocab.json``, ``best_model.pt``.

Tensors are read with ``weights_only=True``. Released files name attention as flash-attention does; these names are
mapped to those of torch. Everything that the embedding needs must be there in the right shape. The decoders of the
pre-training tasks are left out; a tensor that would change the embedding and is not built here is refused.

Source: bowang-lab/scGPT at cebd6fa (MIT); hashes as published with the mirror ``u-cellm/scGPT-whole-human``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.models.rna.folders import existing_folder, read_config, sha256

if TYPE_CHECKING:
    from torch import Tensor

ARGS, VOCABULARY, WEIGHTS = "args.json", "vocab.json", "best_model.pt"

#: File → SHA-256 of the whole-human checkpoint.
PUBLISHED = {
    ARGS: "c18e075e018140cb8b2d9029387b9de26607a5ce6a8ccabd6ead70cd76b95d60",
    VOCABULARY: "acca93d114ca62c3f0f50debbd23e8c87f0714f4737764454f6b2b13f2e8580f",
    WEIGHTS: "6cb5d451ab5c4b33eb673adbe4fddc61d2389df1b89b7651a9fe2e557572b922",
}

PAD, CLS = "<pad>", "<cls>"
#: Tokens that stand behind the genes where the vocabulary lacks them, in this order.
SPECIAL = (PAD, CLS, "<eoc>")

#: Names of flash-attention → names of torch.
_RENAMED = (
    ("self_attn._impl.Wqkv.", "self_attn.in_proj_"),
    ("self_attn.Wqkv.", "self_attn.in_proj_"),
    ("self_attn._impl.out_proj.", "self_attn.out_proj."),
)
#: Decoders of the pre-training tasks, and the mark of genes to generate: none takes part in the embedding.
_DECODERS = ("decoder.", "cls_decoder.", "mvc_decoder.", "sim.", "flag_encoder.")
#: Parts that would change the embedding: batch labels and batch normalisation.
_NOT_BUILT = ("bn.", "dsbn.", "batch_encoder.", "grad_reverse_discriminator.")


@dataclass(frozen=True)
class ScGptConfig:
    """What ``args.json`` says of the network.

    Attributes
    ----------
    dim, heads, hidden, layers
        ``embsize``, ``nheads``, ``d_hid``, ``nlayers``.
    bins
        ``n_bins``: bins of values, that of genes that are not expressed included.
    pad_value
        Value of padding, and of the token ``<cls>``.
    """

    dim: int
    heads: int
    hidden: int
    layers: int
    bins: int
    pad_value: float


@dataclass(frozen=True)
class ScGptFolder:
    """The three files, read but for the weights.

    Attributes
    ----------
    path
        The folder.
    config
        Of the network.
    vocabulary
        Token → its number, special tokens included.
    hashes
        File → SHA-256.
    """

    path: Path
    config: ScGptConfig
    vocabulary: dict[str, int]
    hashes: dict[str, str]

    @property
    def published(self) -> bool:
        """Whether all files are those of the published whole-human checkpoint."""
        return self.hashes == PUBLISHED


def read_folder(folder: str | Path) -> ScGptFolder:
    """Read configuration and vocabulary, and hash the files.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If one of them is not as scGPT writes it, or describes a network that is not built here.
    """
    path = existing_folder("scgpt", folder, (ARGS, VOCABULARY, WEIGHTS))
    config = _config(read_config(path / ARGS), path / ARGS)
    vocabulary = _vocabulary(read_config(path / VOCABULARY), path / VOCABULARY)
    return ScGptFolder(path, config, vocabulary, {file: sha256(path / file) for file in PUBLISHED})


def warn_of_other_files(folder: ScGptFolder) -> None:
    """Say which files differ from the published checkpoint.

    Warns
    -----
    UserWarning
        Naming them.
    """
    if other := [file for file, known in PUBLISHED.items() if folder.hashes[file] != known]:
        warnings.warn(
            f"{folder.path}: {', '.join(other)} differ from the published whole-human scGPT (SHA-256); results are "
            "those of other weights",
            stacklevel=3,
        )


def _config(args: dict[str, Any], path: Path) -> ScGptConfig:
    names = ("embsize", "nheads", "d_hid", "nlayers")
    if missing := [name for name in names if not isinstance(args.get(name), int) or args[name] < 1]:
        raise ValueError(
            f"{path}: no whole number for {', '.join(missing)}\nname the folder of an scGPT checkpoint"
        )
    style = args.get("input_emb_style", "continuous")
    if style != "continuous" or args.get("pre_norm"):
        what = "pre_norm" if style == "continuous" else f"input_emb_style {style!r}"
        raise ValueError(
            f"{path}: {what} is not built here\nuse a checkpoint with continuous values and post-norm"
        )
    if args["embsize"] % args["nheads"]:
        raise ValueError(
            f"{path}: embsize {args['embsize']} is no multiple of nheads {args['nheads']}\nget it again"
        )
    dim, heads, hidden, layers = (args[name] for name in names)
    return ScGptConfig(
        dim, heads, hidden, layers, int(args.get("n_bins", 51)), float(args.get("pad_value", -2))
    )


def _vocabulary(read: dict[str, Any], path: Path) -> dict[str, int]:
    numbers = list(read.values())
    if sorted(number for number in numbers if isinstance(number, int)) != list(range(len(numbers))):
        raise ValueError(f"{path}: tokens are not numbered 0, 1, 2, …\nget the file again")
    vocabulary = dict(read)
    for token in SPECIAL:
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors that the embedding needs, under the names of torch, in float32.

    Raises
    ------
    ValueError
        If the file holds other things than tensors, two names mean one tensor, or a tensor belongs to a part that is
        not built here.

    Warns
    -----
    UserWarning
        If tensors are left out that no known decoder has.
    """
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged files
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: cannot be read as weights: {reason}\ndownload the file again") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in loaded.values()
    ):
        raise ValueError(f"{path}: holds other things than named tensors\nname the published best_model.pt")
    state: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in loaded.items():
        short = plain_name(name)
        if short in state:
            raise ValueError(f"{path}: {name} stands there under two names\nget the file again")
        if short.startswith(_NOT_BUILT):
            raise ValueError(
                f"{path}: {name} belongs to a part for batch labels, which is not built here\nuse a checkpoint without"
            )
        if short.startswith(("encoder.", "value_encoder.", "transformer_encoder.")):
            state[short] = tensor.float()
        elif not short.startswith(_DECODERS):
            unknown.append(name)
    if unknown:
        warnings.warn(f"{path}: not read, unknown: {', '.join(unknown[:4])} ({len(unknown)})", stacklevel=2)
    return state


def plain_name(name: str) -> str:
    """A tensor's name without ``module.`` of data-parallel training, attention named as in torch.

    >>> plain_name("module.transformer_encoder.layers.0.self_attn.Wqkv.weight")
    'transformer_encoder.layers.0.self_attn.in_proj_weight'
    """
    name = name.removeprefix("module.")
    for flash, torch_name in _RENAMED:
        name = name.replace(flash, torch_name)
    return name

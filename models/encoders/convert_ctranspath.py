"""Convert an official CTransPath checkpoint, the first one or that of CHIEF, to safetensors, once.

    python -m equipoise.models.encoders.convert_ctranspath ctranspath.pth ctranspath.safetensors

The checkpoint is a pickle, and a pickle can run any code: it is opened only if its SHA-256 is that of a published
file. The digest goes into the converted file, which thus says which of the two it is.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from equipoise.models.encoders.ctranspath import SwinTransformer
from equipoise.models.encoders.entries import ChiefCTransPathParams, CTransPathParams
from equipoise.models.encoders.weights import load_weights

#: Of the files that the authors published, by name.
OFFICIAL = dict(params.checkpoint for params in (CTransPathParams, ChiefCTransPathParams))

#: Tables that follow from the layout, stored beside the weights.
_DERIVED = (".relative_position_index", ".attn_mask")


def convert(source: Path, target: Path, official: Mapping[str, str] = OFFICIAL) -> None:
    """Check, open, compare with the network and write.

    Parameters
    ----------
    source
        A checkpoint as published: names to tensors, or these under ``"model"``.
    target
        The safetensors file to write, atomically.
    official
        Names and digests of the published files: the source's digest has to be one of them.

    Raises
    ------
    FileNotFoundError
        If there is no source.
    ValueError
        If the source is another file, or its tensors do not match the network.
    """
    with source.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    if value not in official.values():
        known = ", ".join(f"{digest} ({file})" for file, digest in official.items())
        raise ValueError(
            f"{source}: this is no published checkpoint and was not opened: its SHA-256 is {value}, not {known}\n"
            f"download ctranspath.pth as {CTransPathParams.source} says, or CHIEF_CTransPath.pth as "
            f"{ChiefCTransPathParams.source}"
        )
    # Safe: the digest above is that of a published file.
    state: dict[str, Tensor] = torch.load(source, map_location="cpu", weights_only=False)
    state = state.get("model", state)  # type: ignore[assignment]
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(_DERIVED)}
    network = SwinTransformer()
    load_weights(network, weights, str(source))
    temporary = target.with_name(f".{target.name}.part")
    save_file(
        {k: v.contiguous() for k, v in network.state_dict().items()}, temporary, {"source_sha256": value}
    )
    temporary.replace(target)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m equipoise.models.encoders.convert_ctranspath",
        description="Convert an official CTransPath checkpoint (checked by its SHA-256) to safetensors.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="ctranspath.pth or CHIEF_CTransPath.pth as published"
    )
    parser.add_argument("target", type=Path, metavar="TARGET", help="safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        convert(options.source, options.target)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 3
    print(
        f"wrote {options.target}; name it in the study: features: {{encoder_params: {{weights: {options.target}}}}}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

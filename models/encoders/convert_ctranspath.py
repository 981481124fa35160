"""Convert the official CTransPath checkpoint to safetensors, once.

    python -m equipoise.models.encoders.convert_ctranspath ctranspath.pth ctranspath.safetensors

The checkpoint is a pickle, and a pickle can run any code: it is opened only if its SHA-256 is that of the published
file.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from equipoise.models.encoders.ctranspath import SwinTransformer
from equipoise.models.encoders.weights import load_weights

#: Of the file that the authors published.
OFFICIAL = "7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539"

#: Tables that follow from the layout, stored beside the weights.
_DERIVED = (".relative_position_index", ".attn_mask")


def convert(source: Path, target: Path, sha256: str = OFFICIAL) -> None:
    """Check, open, compare with the network and write.

    Parameters
    ----------
    source
        ``ctranspath.pth`` as published: ``{"model": names to tensors}``.
    target
        The safetensors file to write, atomically.
    sha256
        What the source's digest has to be.

    Raises
    ------
    FileNotFoundError
        If there is no source.
    ValueError
        If the source is another file, or its tensors do not match the network.
    """
    with source.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    if value != sha256:
        raise ValueError(
            f"{source}: this is not the published checkpoint and was not opened: its SHA-256 is {value}, not {sha256}\n"
            "download ctranspath.pth as https://github.com/Xiyue-Wang/TransPath says"
        )
    # Safe: the digest above is that of the published file.
    state: dict[str, Tensor] = torch.load(source, map_location="cpu", weights_only=False)["model"]
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
        description="Convert the official CTransPath checkpoint (checked by its SHA-256) to safetensors.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="ctranspath.pth as published")
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

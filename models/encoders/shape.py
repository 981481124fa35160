"""The dimensions of a vision transformer, as plain numbers that need no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

#: How the tokens of a tile become its vector: the class token, the mean of the patch tokens, or both joined.
Pooling = Literal["token", "mean", "token_and_mean"]

#: Attributes of :class:`VitShape` that feature stores of earlier releases know nothing of.
_ADDED_LATER = ("epsilon", "activation", "norm_before", "patch_bias", "inner_norms")


@dataclass(frozen=True)
class VitShape:
    """Dimensions of one vision transformer.

    Attributes
    ----------
    width, depth, heads
        Length of a token, number of blocks, heads of each attention.
    patch, image
        Sides in px of a patch and of the input.
    mlp
        Outputs of a block's first linear layer. With ``swiglu`` it gives gate and value, half of it each.
    swiglu
        SiLU-gated perceptrons in place of GELU ones.
    registers
        Additional tokens that carry nothing of the image (Darcet et al., arXiv 2309.16588).
    class_token
        Whether there is a class token.
    layer_scale
        Whether each branch is scaled per channel before it is added.
    prefix_positions
        Whether class and register tokens have positions, too (timm: not ``no_embed_class``).
    pooling
        How tokens become a vector.
    epsilon
        Of every LayerNorm.
    activation
        Of a perceptron that is not gated: GELU, or ``x * sigmoid(1.702 x)``, as CLIP has it.
    norm_before, patch_bias
        Whether tokens are normalised before the first block, too (CLIP); whether the patch layer has a bias.
    inner_norms
        Whether heads are normalised before the last layer of an attention, and what is between the layers of a
        perceptron, too (Wang et al., arXiv 2210.06423).

    Raises
    ------
    ValueError
        If the numbers cannot belong together.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where read from a file

    width: int
    depth: int
    heads: int
    patch: int
    mlp: int
    image: int = 224
    swiglu: bool = False
    registers: int = 0
    class_token: bool = True
    layer_scale: bool = True
    prefix_positions: bool = True
    pooling: Pooling = "token"
    epsilon: float = 1e-6
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    norm_before: bool = False
    patch_bias: bool = True
    inner_norms: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads cannot share a width of {self.width}")
        if self.image % self.patch:
            raise ValueError(f"patches of {self.patch} px do not fill an image of {self.image} px")
        if self.swiglu and self.mlp % 2:
            raise ValueError(f"gate and value need an even width, not {self.mlp}")
        if self.swiglu and self.activation != "gelu":
            raise ValueError(f"a gated perceptron has no activation {self.activation!r}")
        if self.swiglu and self.inner_norms:
            raise ValueError("a gated perceptron has no norm between its layers")
        if not self.class_token and self.pooling != "mean":
            raise ValueError(f"pooling {self.pooling!r} needs a class token")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image // self.patch

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class token, then registers."""
        return int(self.class_token) + self.registers

    @property
    def positions(self) -> int:
        """Rows of the position embedding."""
        return self.grid**2 + (self.prefix if self.prefix_positions else 0)

    @property
    def dim(self) -> int:
        """Length of the pooled vector."""
        return self.width * (2 if self.pooling == "token_and_mean" else 1)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for a hash: what was added later stands in it only where it is not as it was before."""
        late = {field.name: field.default for field in fields(self) if field.name in _ADDED_LATER}
        return {
            name: value for name, value in asdict(self).items() if name not in late or value != late[name]
        }


@dataclass(frozen=True)
class ProjectionShape:
    """Linear layers on the pooled vector.

    Attributes
    ----------
    dim
        Outputs of each layer.
    layers
        Two with GELU between them, whose result is brought to length 1; or one without a bias, and its result as it is.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where read from a file

    dim: int
    layers: Literal[1, 2] = 2


@dataclass(frozen=True)
class PoolerShape:
    """One learned query that attends to all tokens (CoCa, Yu et al., arXiv 2205.01917), then a LayerNorm.

    Attributes
    ----------
    dim, heads
        Length of the query and of the vector; heads of the attention.
    biased
        Layers of the attention with biases under the names of torch's ``MultiheadAttention``, or without under
        ``to_q``, ``to_kv`` and ``to_out``.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where read from a file

    dim: int
    biased: bool
    heads: int = 8

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"{self.heads} heads cannot share a width of {self.dim}")

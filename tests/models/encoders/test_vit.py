"""The transformer against published counts, against the same sums written otherwise, and against timm."""

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.encoders.card import Regrid
from equipoise.models.encoders.cards import CARDS
from equipoise.models.encoders.hub import card_network
from equipoise.models.encoders.shape import VitShape
from equipoise.models.encoders.vit import VisionTransformer, regridded_positions

#: Published parameter counts, without the mask tokens that only training uses (1024 of Phikon-v2, 1536 of Midnight)
#: with Midnight's and kaiko's positions for 224 px (their files have those for 518 px: 1113 more), and without the
#: class token's position of Hibou, which is added to the token.
COUNTS = {
    "uni": 303_350_784,
    "uni2_h": 681_394_176,
    "virchow": 631_229_184,
    "virchow2": 631_239_424,
    "h_optimus_0": 1_134_774_272,
    "h_optimus_1": 1_134_774_272,
    "gigapath": 1_134_953_984,
    "phikon_v2": 303_351_808 - 1024,
    "midnight": 1_136_480_768 - 1536 - 1113 * 1536,
    "kaiko_vitl14": 304_370_688 - 1113 * 1024,
    "lunit_vits8": 21_670_272,
    "phikon": 85_798_656,
    "hibou_b": 85_740_288 - 768,
    "hibou_l": 303_658_240 - 1024,
    "h0_mini": 85_739_520,
    "openmidnight": 1_134_774_272,
}

#: Of those without a published count, by hand: a block of width D and hidden H has 4 D D + 4 D for the attention,
#: 2 D H + H + D for the perceptron and 4 D of norms (2 D more with LayerScale); then patches, tokens and the last norm.
BLOCKS_LARGE = 24 * (12 * 1024**2 + 13 * 1024 + 2 * 1024)
COUNTS |= {
    "plip": 87_456_000 + 768 * 512,  # CLIP's ViT-B/32, published, and the projection
    "gpfm": BLOCKS_LARGE + 3 * 14 * 14 * 1024 + 1024 + 1024 + 257 * 1024 + 2 * 1024,
    "keep": BLOCKS_LARGE + 3 * 16 * 16 * 1024 + 1024 + 1024 + 197 * 1024 + 2 * 1024
    + 1024 * 768 + 768 + 768 * 768 + 768,
    "conch": 12 * (12 * 768**2 + 13 * 768) + 3 * 16 * 16 * 768 + 768 + 768 + 785 * 768 + 2 * 768
    + 512 + 512 * 512 + 2 * 512 * 768 + 3 * 512 + 512 * 512 + 512 + 2 * 512 + 2 * 768 + 2 * 512,
    "conch_v1_5": BLOCKS_LARGE + 3 * 16 * 16 * 1024 + 1024 + 1024 + 785 * 1024 + 2 * 1024
    + 768 + 768 * 768 + 2 * 768 * 1024 + 768 * 768 + 2 * 768 + 2 * 1024 + 2 * 768,
    "musk": 24 * (12 * 1024**2 + 13 * 1024 + 2 * 1024 + 2 * 4096) + 3 * 16 * 16 * 1024 + 1024 + 1024
    + (579 - 2) * 1024 + 2 * 1024,  # norms inside attention and perceptron; two unused rows of positions
}  # fmt: skip

SMALL = VitShape(width=48, depth=2, heads=4, patch=8, mlp=96, image=32)
VARIANTS = {
    "plain": replace(SMALL, layer_scale=False),
    "uni": SMALL,
    "uni2_h": replace(SMALL, swiglu=True, registers=8, prefix_positions=False),
    "virchow": replace(SMALL, swiglu=True, pooling="token_and_mean"),
    "virchow2": replace(SMALL, swiglu=True, registers=4, pooling="token_and_mean"),
    "plip": replace(
        SMALL, layer_scale=False, epsilon=0.05, activation="quick_gelu", norm_before=True, patch_bias=False
    ),
    "no token": replace(SMALL, class_token=False, pooling="mean"),
}


def random_network(shape: VitShape, seed: int = 0) -> VisionTransformer:
    """Every parameter, also those that start as zeros or ones, is drawn."""
    network = VisionTransformer(shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return network.eval()


def images(shape: VitShape, count: int = 3) -> Tensor:
    return torch.randn(count, 3, shape.image, shape.image, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", list(CARDS))
def test_parameters_of_published_models(name: str) -> None:
    with torch.device("meta"):
        network = card_network(CARDS[name])
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[name]


BLOCK = {
    *(f"{part}.{kind}" for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
      for kind in ("weight", "bias")),
    "ls1.gamma",
    "ls2.gamma",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "depth", "registers"), [("uni", 24, False), ("uni2_h", 24, True), ("gigapath", 40, False)]
)
def test_names_are_those_of_timm(name: str, depth: int, registers: bool) -> None:
    with torch.device("meta"):
        state = VisionTransformer(CARDS[name].shape).state_dict()
    wanted = {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "norm.weight",
        "norm.bias",
    }
    wanted |= {"reg_token"} if registers else set()
    wanted |= {f"blocks.{at}.{part}" for at in range(depth) for part in BLOCK}
    assert set(state) == wanted


def test_shapes_where_layouts_differ() -> None:
    """Positions with and without the prefix; gate and value in one layer."""
    with torch.device("meta"):
        states = {
            name: VisionTransformer(CARDS[name].shape).state_dict() for name in ("virchow2", "uni2_h", "uni")
        }
    assert states["virchow2"]["pos_embed"].shape == (1, 261, 1280)
    assert states["uni2_h"]["pos_embed"].shape == (1, 256, 1536)
    assert states["uni"]["pos_embed"].shape == (1, 197, 1024)
    assert states["virchow2"]["blocks.0.mlp.fc1.weight"].shape == (6832, 1280)
    assert states["virchow2"]["blocks.0.mlp.fc2.weight"].shape == (1280, 3416)


def by_hand(state: dict[str, Tensor], shape: VitShape, image: Tensor) -> Tensor:
    """One image at a time, patches cut by hand, one head after the other, softmax written out; float64."""
    p = {name: tensor.double() for name, tensor in state.items()}
    grid, size, width = shape.grid, shape.patch, shape.width

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + shape.epsilon).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def attention(x: Tensor, name: str) -> Tensor:
        packed = linear(x, f"{name}.qkv")
        per_head = width // shape.heads
        heads = []
        for head in range(shape.heads):
            q, k, v = (packed[:, part * width + head * per_head :][:, :per_head] for part in range(3))
            scores = (q @ k.T / math.sqrt(per_head)).exp()
            heads.append(scores / scores.sum(1, keepdim=True) @ v)
        return linear(torch.cat(heads, 1), f"{name}.proj")

    def perceptron(x: Tensor, name: str) -> Tensor:
        hidden = linear(x, f"{name}.fc1")
        if shape.swiglu:
            half = hidden.shape[1] // 2
            return linear(hidden[:, :half] * hidden[:, :half].sigmoid() * hidden[:, half:], f"{name}.fc2")
        if shape.activation == "quick_gelu":
            return linear(hidden / (1 + (-1.702 * hidden).exp()), f"{name}.fc2")
        return linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"{name}.fc2")

    vectors = []
    for picture in image.double():
        patches = [
            picture[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            for row in range(grid)
            for column in range(grid)
        ]
        kernel = p["patch_embed.proj.weight"].flatten(1)
        x = torch.stack([kernel @ patch.flatten() + p.get("patch_embed.proj.bias", 0) for patch in patches])
        prefix = [p["cls_token"][0]] if shape.class_token else []
        prefix += [p["reg_token"][0]] if shape.registers else []
        place = p["pos_embed"][0]
        x = torch.cat([*prefix, x]) + place if shape.prefix_positions else torch.cat([*prefix, x + place])
        x = norm(x, "norm_pre") if shape.norm_before else x
        for at in range(shape.depth):
            name = f"blocks.{at}"
            one, two = (p[f"{name}.ls{k}.gamma"] if shape.layer_scale else 1.0 for k in (1, 2))
            x = x + one * attention(norm(x, f"{name}.norm1"), f"{name}.attn")
            x = x + two * perceptron(norm(x, f"{name}.norm2"), f"{name}.mlp")
        x = norm(x, "norm")
        mean = x[-(grid * grid) :].mean(0)
        pooled = {"token": x[0], "mean": mean, "token_and_mean": torch.cat([x[0], mean])}
        vectors.append(pooled[shape.pooling])
    return torch.stack(vectors)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_equals_the_same_sums_by_hand(name: str) -> None:
    shape = VARIANTS[name]
    network = random_network(shape)
    with torch.inference_mode():
        double = network.double()(images(shape).double())
        by = by_hand(network.state_dict(), shape, images(shape))
        single = network.float()(images(shape))
    assert double.shape == (3, shape.dim)
    torch.testing.assert_close(double, by, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(single.double(), by, rtol=1e-3, atol=1e-4)


def timm_or_skip() -> ModuleType:
    try:
        import timm.models.vision_transformer as module  # pyright: ignore[reportMissingImports]
    except (
        Exception
    ) as error:  # beside a CPU build of torch its import fails in torchvision, with a RuntimeError
        pytest.skip(f"timm does not import here: {type(error).__name__}: {error}")
    return module


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "plip"])
def test_equals_timm(name: str) -> None:
    module = timm_or_skip()
    from timm.layers import SwiGLUPacked  # pyright: ignore[reportMissingImports]

    shape = VARIANTS[name]
    mlp = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if shape.swiglu else {}
    theirs = module.VisionTransformer(
        img_size=shape.image,
        patch_size=shape.patch,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp / shape.width,
        num_classes=0,
        init_values=1e-5 if shape.layer_scale else None,
        reg_tokens=shape.registers,
        class_token=shape.class_token,
        no_embed_class=not shape.prefix_positions,
        global_pool="",
        **mlp,
    ).eval()
    ours = random_network(shape)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.inference_mode():
        assert torch.equal(ours.tokens(images(shape)), theirs(images(shape)))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, 32, 32\], not \[1, 3, 40, 32\]"):
        VisionTransformer(SMALL)(torch.zeros(1, 3, 40, 32))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": 5}, "5 heads"),
        ({"patch": 7}, "do not fill"),
        ({"mlp": 97, "swiglu": True}, "even"),
        ({"class_token": False}, "class token"),
        ({"swiglu": True, "activation": "quick_gelu"}, "no activation"),
    ],
)
def test_impossible_measures(change: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(SMALL, **change)


def test_positions_are_resized_and_the_prefix_is_not() -> None:
    positions = torch.randn(1, 1 + 37 * 37, 6, generator=torch.Generator().manual_seed(2))
    resized = regridded_positions(positions, 16, 1, "transformers")
    assert resized.shape == (1, 257, 6)
    assert torch.equal(resized[:, 0], positions[:, 0])
    plane = positions[0, 1:, 3].view(1, 1, 37, 37)
    wanted = functional.interpolate(plane, size=(16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized[0, 1:, 3], wanted.flatten())
    for regrid in WORDS:
        assert regridded_positions(positions, 37, 1, regrid) is positions
        with pytest.raises(ValueError, match="no square"):
            regridded_positions(positions[:, :-1], 16, 1, regrid)


def cubic(x: float, a: float) -> float:
    """Keys' kernel of bicubic interpolation."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def interpolation(side: int, grid: int, regrid: Regrid) -> Tensor:
    """Weights ``[grid, side]`` of each old position in each new one along an axis, written out.

    torch takes Keys' a = -0.75 without and -0.5 with antialiasing, which widens the kernel by the factor of shrinking.
    """
    scale = side / (grid + 0.1) if regrid == "dinov2" else side / grid
    weights = torch.zeros(grid, side, dtype=torch.float64)
    for new in range(grid):
        centre = (new + 0.5) * scale - 0.5
        if regrid == "timm":
            wide = max(scale, 1.0)
            for old in range(side):
                if abs(old - centre) < 2 * wide:
                    weights[new, old] = cubic((old - centre) / wide, -0.5)
            weights[new] /= weights[new].sum()
        else:
            for old in range(math.floor(centre) - 1, math.floor(centre) + 3):
                weights[new, min(max(old, 0), side - 1)] += cubic(old - centre, -0.75)
    return weights


WORDS: tuple[Regrid, ...] = ("timm", "transformers", "dinov2")


@pytest.mark.parametrize("regrid", WORDS)
@pytest.mark.parametrize(("side", "grid"), [(37, 16), (14, 28)])
def test_interpolation_of_positions_by_hand(regrid: Regrid, side: int, grid: int) -> None:
    table = torch.randn(1, side * side, 5, generator=torch.Generator().manual_seed(side))
    axis = interpolation(side, grid, regrid)
    plane = table[0].double().view(side, side, 5)
    wanted = torch.einsum("ra,cb,abd->rcd", axis, axis, plane).reshape(1, grid * grid, 5)
    got = regridded_positions(table, grid, 0, regrid)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("side", "grid"), [(37, 16), (14, 28)])
def test_interpolation_of_positions_equals_timm(side: int, grid: int) -> None:
    timm_or_skip()
    from timm.layers import resample_abs_pos_embed  # pyright: ignore[reportMissingImports]

    table = torch.randn(1, side * side, 5, generator=torch.Generator().manual_seed(side))
    wanted = resample_abs_pos_embed(table, [grid, grid], num_prefix_tokens=0)
    assert torch.equal(regridded_positions(table, grid, 0, "timm"), wanted)

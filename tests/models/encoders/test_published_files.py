"""Small random weights under the names of the published files, through the loader: each name by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from equipoise.models.encoders.card import ModelCard
from equipoise.models.encoders.cards import CARDS
from equipoise.models.encoders.entries import hub_params
from equipoise.models.encoders.hub import HubEncoder, card_network
from equipoise.models.encoders.layouts import to_card
from equipoise.models.encoders.shape import PoolerShape, ProjectionShape
from equipoise.models.encoders.torch_encoder import Preparation
from equipoise.models.encoders.vit import VisionTransformer
from equipoise.models.encoders.weights import read_weights

WIDTH, HIDDEN, DIM = 48, 96, 16


def small(name: str, image: int | None = None) -> ModelCard:
    """A card with everything as published but the sizes."""
    card = CARDS[name]
    shape = replace(card.shape, width=WIDTH, depth=2, heads=4, mlp=HIDDEN, image=image or card.shape.image)
    head = card.head
    if isinstance(head, ProjectionShape):
        head = ProjectionShape(DIM, head.layers)
    elif head is not None:
        head = PoolerShape(DIM, head.biased, heads=4)
    return replace(card, shape=shape, head=head, sha256=None)


def drawn(sizes: dict[str, tuple[int, ...]], seed: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) * 0.2 for name, size in sizes.items()}


def linear(name: str, out: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def norm(name: str, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def timm_file(
    card: ModelCard, rows: int, prefix: str = "", scale: str = "gamma"
) -> dict[str, tuple[int, ...]]:
    """timm's VisionTransformer."""
    shape = card.shape
    sizes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, rows, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, shape.patch, shape.patch),
        "patch_embed.proj.bias": (WIDTH,),
    } | norm("norm")
    if shape.registers:
        sizes["reg_token"] = (1, shape.registers, WIDTH)
    for at in range(2):
        block = f"blocks.{at}"
        sizes |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        sizes |= linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH) | linear(f"{block}.attn.proj", WIDTH, WIDTH)
        sizes |= linear(f"{block}.mlp.fc1", HIDDEN, WIDTH)
        sizes |= linear(f"{block}.mlp.fc2", WIDTH, HIDDEN // 2 if shape.swiglu else HIDDEN)
        if shape.layer_scale:
            sizes |= {f"{block}.ls{k}.{scale}": (WIDTH,) for k in (1, 2)}
    return {prefix + name: size for name, size in sizes.items()}


def transformers_file(card: ModelCard, rows: int, *, vit: bool = False) -> dict[str, tuple[int, ...]]:
    """transformers' Dinov2Model, Dinov2WithRegistersModel or, with ``vit``, ViTModel."""
    shape = card.shape
    sizes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, rows, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, shape.patch, shape.patch),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
    } | norm("layernorm")
    if vit:
        sizes |= linear("pooler.dense", WIDTH, WIDTH)
    else:
        sizes["embeddings.mask_token"] = (1, WIDTH)
    if shape.registers:
        sizes["embeddings.register_tokens"] = (1, shape.registers, WIDTH)
    first, second = ("weights_in", "weights_out") if shape.swiglu else ("fc1", "fc2")
    for at in range(2):
        layer = f"encoder.layer.{at}"
        for part in ("query", "key", "value"):
            sizes |= linear(f"{layer}.attention.attention.{part}", WIDTH, WIDTH)
        sizes |= linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        if vit:
            sizes |= norm(f"{layer}.layernorm_before") | norm(f"{layer}.layernorm_after")
            sizes |= linear(f"{layer}.intermediate.dense", HIDDEN, WIDTH)
            sizes |= linear(f"{layer}.output.dense", WIDTH, HIDDEN)
        else:
            sizes |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2")
            sizes |= linear(f"{layer}.mlp.{first}", HIDDEN, WIDTH)
            sizes |= linear(f"{layer}.mlp.{second}", WIDTH, HIDDEN // 2 if shape.swiglu else HIDDEN)
            sizes |= {f"{layer}.layer_scale{k}.lambda1": (WIDTH,) for k in (1, 2)}
    return sizes


def openmidnight_file(card: ModelCard) -> dict[str, tuple[int, ...]]:
    """The DINOv2 training code: w12 and w3, register_tokens, a mask token, a position for the class token."""
    sizes = {}
    for name, size in timm_file(card, 257).items():
        name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        sizes["register_tokens" if name == "reg_token" else name] = size
    return sizes | {"mask_token": (1, WIDTH)}


def keep_file(card: ModelCard) -> dict[str, tuple[int, ...]]:
    sizes = timm_file(card, 197, "visual.", scale="weight")
    sizes |= linear("visual_head.0", DIM, WIDTH) | linear("visual_head.2", DIM, DIM)
    return sizes | {"logit_scale": (), "text.embeddings.word_embeddings.weight": (9, 5)}


def plip_file(card: ModelCard) -> dict[str, tuple[int, ...]]:
    """transformers' CLIPModel; its checkpoints of that time also hold the numbers of the positions."""
    vision = "vision_model"
    sizes: dict[str, tuple[int, ...]] = (
        {
            f"{vision}.embeddings.class_embedding": (WIDTH,),
            f"{vision}.embeddings.patch_embedding.weight": (WIDTH, 3, 32, 32),
            f"{vision}.embeddings.position_embedding.weight": (50, WIDTH),
            f"{vision}.embeddings.position_ids": (1, 50),
            "visual_projection.weight": (DIM, WIDTH),
            "text_model.embeddings.position_ids": (1, 77),
            "text_model.final_layer_norm.bias": (5,),
            "text_projection.weight": (DIM, 5),
            "logit_scale": (),
        }
        | norm(f"{vision}.pre_layrnorm")
        | norm(f"{vision}.post_layernorm")
    )
    for at in range(2):
        layer = f"{vision}.encoder.layers.{at}"
        sizes |= norm(f"{layer}.layer_norm1") | norm(f"{layer}.layer_norm2")
        for part in ("q", "k", "v", "out"):
            sizes |= linear(f"{layer}.self_attn.{part}_proj", WIDTH, WIDTH)
        sizes |= linear(f"{layer}.mlp.fc1", HIDDEN, WIDTH) | linear(f"{layer}.mlp.fc2", WIDTH, HIDDEN)
    return sizes


def conch_file(card: ModelCard) -> dict[str, tuple[int, ...]]:
    sizes = timm_file(card, 785, "visual.trunk.")
    for task, queries in (("contrast", 1), ("caption", 7)):
        pool = f"visual.attn_pool_{task}"
        sizes |= {f"{pool}.query": (queries, DIM), f"{pool}.attn.q_proj_weight": (DIM, DIM)}
        sizes |= {f"{pool}.attn.{part}_proj_weight": (DIM, WIDTH) for part in ("k", "v")}
        sizes |= {f"{pool}.attn.in_proj_bias": (3 * DIM,)} | linear(f"{pool}.attn.out_proj", DIM, DIM)
        sizes |= norm(f"{pool}.ln_q", DIM) | norm(f"{pool}.ln_k") | norm(f"visual.ln_{task}", DIM)
    return sizes | {
        "visual.proj_contrast": (DIM, DIM),
        "logit_scale": (),
        "text.positional_embedding": (9, 5),
        "text_decoder.ln.weight": (5,),
    }


def conch_v1_5_file(card: ModelCard, rows: int = 197) -> dict[str, tuple[int, ...]]:
    pool = "attn_pool_contrast"
    sizes = timm_file(card, rows, "trunk.") | {f"{pool}.query": (1, DIM), f"{pool}.to_q.weight": (DIM, DIM)}
    sizes |= {f"{pool}.to_kv.weight": (2 * DIM, WIDTH), f"{pool}.to_out.weight": (DIM, DIM)}
    return sizes | norm(f"{pool}.ln_q", DIM) | norm(f"{pool}.ln_k") | norm("ln_contrast", DIM)


def musk_file(card: ModelCard) -> dict[str, tuple[int, ...]]:
    """torchscale's BEiT-3: experts for images, ``A``, and text, ``B``; 576 patches, a class token, 2 spare rows."""
    sizes: dict[str, tuple[int, ...]] = {
        "beit3.text_embed.weight": (9, WIDTH),
        "beit3.vision_embed.mask_token": (1, 1, WIDTH),
        "beit3.vision_embed.cls_token": (1, 1, WIDTH),
        "beit3.vision_embed.proj.weight": (WIDTH, 3, 16, 16),
        "beit3.vision_embed.proj.bias": (WIDTH,),
        "beit3.encoder.embed_positions.A.weight": (579, WIDTH),
        "beit3.encoder.embed_positions.B.weight": (1024, WIDTH),
        "vision_head.weight": (WIDTH, WIDTH),
        "language_head.weight": (WIDTH, WIDTH),
        "logit_scale": (),
    }
    for expert in "AB":
        sizes |= norm(f"beit3.encoder.layer_norm.{expert}")
        for at in range(card.shape.depth):
            layer = f"beit3.encoder.layers.{at}"
            for part in ("q", "k", "v", "out"):
                sizes |= linear(f"{layer}.self_attn.{part}_proj.{expert}", WIDTH, WIDTH)
            sizes |= norm(f"{layer}.self_attn.inner_attn_ln.{expert}")
            sizes |= norm(f"{layer}.self_attn_layer_norm.{expert}") | norm(
                f"{layer}.final_layer_norm.{expert}"
            )
            sizes |= linear(f"{layer}.ffn.{expert}.fc1", HIDDEN, WIDTH)
            sizes |= linear(f"{layer}.ffn.{expert}.fc2", WIDTH, HIDDEN)
            sizes |= norm(f"{layer}.ffn.{expert}.ffn_layernorm", HIDDEN)
    return sizes


def published(name: str) -> tuple[ModelCard, dict[str, Tensor]]:
    """A small card and tensors under all the names that its published file has."""
    card = small(name)
    files: dict[str, Any] = {
        "phikon_v2": lambda: transformers_file(card, 197),
        "midnight": lambda: transformers_file(card, 1370),
        "kaiko_vitl14": lambda: timm_file(card, 1369),
        "phikon": lambda: transformers_file(card, 197, vit=True),
        "hibou_b": lambda: transformers_file(card, 257),
        "hibou_l": lambda: transformers_file(card, 257),
        "keep": lambda: keep_file(card),
        "openmidnight": lambda: openmidnight_file(card),
        "plip": lambda: plip_file(card),
        "conch": lambda: conch_file(card),
        "conch_v1_5": lambda: conch_v1_5_file(card),
        "musk": lambda: musk_file(card),
    }
    rows = {"uni": 197, "uni2_h": 256, "virchow": 257, "virchow2": 261, "h_optimus_0": 256, "h_optimus_1": 256,
            "gigapath": 197, "lunit_vits8": 785, "h0_mini": 256, "gpfm": 257}  # fmt: skip
    sizes = files[name]() if name in files else timm_file(card, rows[name])
    return card, drawn(sizes)


@pytest.mark.parametrize("name", list(CARDS))
def test_the_published_names_fit(name: str) -> None:
    """Every tensor lands in the network, and nothing of the network stays without one."""
    card, state = published(name)
    ours = to_card(state, card)
    network = card_network(card)
    network.load_state_dict(ours, strict=True)
    used = {tensor.data_ptr() for tensor in ours.values()}
    for theirs, tensor in state.items():
        copied = (
            "attention.attention.",
            "self_attn.",
            "position",
            "pos_embed",
            "cls_token",
            ".B.",
        )  # packed, resized, summed or of another expert
        assert theirs.startswith(card.drops) or tensor.data_ptr() in used or any(w in theirs for w in copied)


@pytest.mark.parametrize(
    "name", ["keep", "plip", "conch", "openmidnight", "hibou_b", "phikon", "kaiko_vitl14", "musk"]
)
def test_from_file_to_vectors(name: str, tmp_path: Path) -> None:
    card, state = published(name)
    file = tmp_path / card.file
    (save_file if file.suffix == ".safetensors" else torch.save)(state, file)
    params = hub_params(card)(weights=str(tmp_path), device="cpu")
    encoder = HubEncoder(params)
    assert HubEncoder.identify(params).hash == encoder.hash
    side = card.pairings[-1][1]
    tiles = np.random.default_rng(3).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    network = card_network(card)
    network.load_state_dict(to_card(state, card))
    prepare = Preparation(card.shape.image, *card.normalisation, card.fit, card.crop_from)
    with torch.inference_mode():
        wanted = network(prepare(torch.from_numpy(tiles))).half().numpy()
    assert wanted.shape == (2, card.dim)
    np.testing.assert_array_equal(encoder(tiles), wanted)
    if name == "keep":
        np.testing.assert_allclose(np.linalg.norm(wanted.astype(float), axis=1), 1, atol=1e-3)
    extra = state | {"visual.extra.weight" if card.head else "blocks.9.weight": torch.zeros(1)}
    (save_file if file.suffix == ".safetensors" else torch.save)(extra, file)
    with pytest.raises(ValueError, match=r"1 not expected"):
        HubEncoder(params)


def test_places_of_transformers_names() -> None:
    card, state = published("midnight")
    ours = to_card(state, replace(card, shape=replace(card.shape, image=518)))
    assert torch.equal(ours["cls_token"], state["embeddings.cls_token"])
    assert torch.equal(ours["pos_embed"], state["embeddings.position_embeddings"])
    assert torch.equal(ours["blocks.1.ls2.gamma"], state["encoder.layer.1.layer_scale2.lambda1"])
    assert torch.equal(ours["blocks.0.attn.proj.bias"], state["encoder.layer.0.attention.output.dense.bias"])
    packed = ours["blocks.1.attn.qkv.weight"].view(3, WIDTH, WIDTH)
    for at, part in enumerate(("query", "key", "value")):
        assert torch.equal(packed[at], state[f"encoder.layer.1.attention.attention.{part}.weight"])
    assert torch.equal(ours["blocks.0.mlp.fc1.weight"], state["encoder.layer.0.mlp.weights_in.weight"])
    vit, state = published("phikon")
    ours = to_card(state, vit)
    assert torch.equal(ours["blocks.1.norm1.bias"], state["encoder.layer.1.layernorm_before.bias"])
    assert torch.equal(ours["blocks.1.norm2.bias"], state["encoder.layer.1.layernorm_after.bias"])
    assert torch.equal(ours["blocks.0.attn.proj.bias"], state["encoder.layer.0.attention.output.dense.bias"])
    assert torch.equal(ours["blocks.0.mlp.fc2.bias"], state["encoder.layer.0.output.dense.bias"])


@pytest.mark.parametrize("name", ["hibou_b", "openmidnight"])
def test_the_class_token_takes_its_position_along(name: str) -> None:
    """Upstream adds the table to class token and patches, then puts the registers between them."""
    card, state = published(name)
    ours = to_card(state, card)
    token, table, registers = (
        state[key] for key in (
            ("cls_token", "pos_embed", "register_tokens") if name == "openmidnight" else
            ("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.register_tokens")
        )
    )  # fmt: skip
    network = VisionTransformer(card.shape)
    network.load_state_dict(ours)
    patches = torch.randn(2, 256, WIDTH, generator=torch.Generator().manual_seed(0))
    upstream = torch.cat([token.expand(2, -1, -1), patches], 1) + table
    upstream = torch.cat([upstream[:, :1], registers.expand(2, -1, -1), upstream[:, 1:]], 1)
    torch.testing.assert_close(network._with_positions(patches), upstream)


def test_half_a_block_is_an_error() -> None:
    card, state = published("phikon_v2")
    del state["encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(
        ValueError, match=r"blocks\.1\.attn\.qkv\.bias needs query, key, value; the file has query, value"
    ):
        to_card(state, card)


def test_training_states_of_the_same_name_are_refused(tmp_path: Path) -> None:
    """GPFM's release holds another file of that name: the state of its training, in dictionaries."""
    card, state = published("gpfm")
    torch.save({"teacher": {f"backbone.{k}": v for k, v in state.items()}}, tmp_path / "GPFM.pth")
    with pytest.raises(ValueError, match="other things than named tensors"):
        HubEncoder(hub_params(card)(weights=str(tmp_path)))


def test_tensors_in_dictionaries(tmp_path: Path) -> None:
    state = {"a": torch.zeros(2)}
    torch.save({"epoch": 3, "teacher": {"backbone": state}}, tmp_path / "file.pth")
    read = read_weights(tmp_path / "file.pth", ("teacher", "backbone"))
    assert torch.equal(read["a"], state["a"])
    with pytest.raises(ValueError, match=r"has no teacher\.student"):
        read_weights(tmp_path / "file.pth", ("teacher", "student"))
    with pytest.raises(ValueError, match=r"has no epoch\.x"):
        read_weights(tmp_path / "file.pth", ("epoch", "x"))


def test_positions_that_cannot_be_are_reported_with_the_file(tmp_path: Path) -> None:
    card, _ = published("uni")
    save_file(drawn(timm_file(card, 226)), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: .*pos_embed \[1, 226, 48\] instead of"):
        HubEncoder(hub_params(card)(weights=str(tmp_path)))
    card, _ = published("kaiko_vitl14")
    save_file(drawn(timm_file(card, 1370)), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: 1370 positions are no square.*\n.*published"):
        HubEncoder(hub_params(card)(weights=str(tmp_path)))


@pytest.mark.parametrize("name", ["conch", "conch_v1_5"])
def test_attentional_pooling_by_hand(name: str) -> None:
    """One head after the other, in float64."""
    card, state = published(name)
    network = card_network(card).double()
    network.load_state_dict({key: tensor.double() for key, tensor in to_card(state, card).items()})
    tokens = torch.randn(3, 11, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    prefix = "visual." if name == "conch" else ""
    p = {key.removeprefix(prefix): tensor.double() for key, tensor in state.items()}

    def layer_norm(x: Tensor, key: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{key}.weight"]
            + p[f"{key}.bias"]
        )

    query = layer_norm(p["attn_pool_contrast.query"], "attn_pool_contrast.ln_q")
    context = layer_norm(tokens, "attn_pool_contrast.ln_k")
    pool = "attn_pool_contrast"
    if name == "conch":
        biases = p[f"{pool}.attn.in_proj_bias"].chunk(3)
        q, k, v = (
            x @ p[f"{pool}.attn.{part}_proj_weight"].T + bias
            for x, part, bias in zip((query, context, context), "qkv", biases, strict=True)
        )
    else:
        q = query @ p[f"{pool}.to_q.weight"].T
        k, v = (context @ half.T for half in p[f"{pool}.to_kv.weight"].chunk(2))
    each = DIM // 4
    mixed = []
    for head in range(4):
        part = slice(head * each, (head + 1) * each)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(each)).softmax(-1)
        mixed.append(weights @ v[..., part])
    x = torch.cat(mixed, -1)[:, 0]
    if name == "conch":
        x = x @ p[f"{pool}.attn.out_proj.weight"].T + p[f"{pool}.attn.out_proj.bias"]
    else:
        x = x @ p[f"{pool}.to_out.weight"].T
    torch.testing.assert_close(network.head(tokens), layer_norm(x, "ln_contrast"), rtol=1e-9, atol=1e-10)


def test_beit3_by_hand() -> None:
    """The layers under the names of the file, one head after the other, in float64."""
    card, state = published("musk")
    network = card_network(card).double()
    network.load_state_dict({key: tensor.double() for key, tensor in to_card(state, card).items()})
    p = {key.removeprefix("beit3."): tensor.double() for key, tensor in state.items()}
    image = torch.randn(2, 3, 384, 384, dtype=torch.float64, generator=torch.Generator().manual_seed(6))

    def dense(x: Tensor, key: str) -> Tensor:
        return x @ p[f"{key}.weight"].T + p[f"{key}.bias"]

    def layer_norm(x: Tensor, key: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * p[f"{key}.weight"] + p[f"{key}.bias"]

    patches = image.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ p["vision_embed.proj.weight"].flatten(1).T + p["vision_embed.proj.bias"]
    x = torch.cat([p["vision_embed.cls_token"].expand(2, -1, -1), x], 1)
    x = x + torch.stack([p["encoder.embed_positions.A.weight"][2 + at] for at in range(577)])
    each = WIDTH // 4
    for at in range(2):
        layer = f"encoder.layers.{at}"
        h = layer_norm(x, f"{layer}.self_attn_layer_norm.A")
        q, k, v = (dense(h, f"{layer}.self_attn.{part}_proj.A") for part in "qkv")
        heads = []
        for head in range(4):
            part = slice(head * each, (head + 1) * each)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(each)).softmax(-1)
            heads.append(weights @ v[..., part])
        h = layer_norm(torch.cat(heads, -1), f"{layer}.self_attn.inner_attn_ln.A")
        x = x + dense(h, f"{layer}.self_attn.out_proj.A")
        h = dense(layer_norm(x, f"{layer}.final_layer_norm.A"), f"{layer}.ffn.A.fc1")
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        x = x + dense(layer_norm(h, f"{layer}.ffn.A.ffn_layernorm"), f"{layer}.ffn.A.fc2")
    wanted = layer_norm(x, "encoder.layer_norm.A")[:, 0]
    torch.testing.assert_close(network(image), wanted, rtol=1e-9, atol=1e-10)


def transformers_or_skip() -> Any:
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except Exception as error:
        pytest.skip(f"transformers does not import here: {type(error).__name__}: {error}")
    return transformers


@pytest.mark.parametrize("name", ["phikon", "phikon_v2", "midnight", "hibou_b"])
def test_equals_transformers(name: str) -> None:
    """A file that transformers wrote, its output, and ours of the same file."""
    library = transformers_or_skip()
    card, _ = published(name)
    kind = {"phikon": "ViT", "hibou_b": "Dinov2WithRegisters"}.get(name, "Dinov2")
    settings: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": card.shape.patch,
        "image_size": 518 if name == "midnight" else 224,
        "layer_norm_eps": 1e-6,
    }
    if name == "phikon":
        settings["intermediate_size"] = HIDDEN
    else:
        settings |= {"mlp_ratio": 2, "use_swiglu_ffn": card.shape.swiglu}
    config = getattr(library, f"{kind}Config")(**settings)
    theirs = getattr(library, f"{kind}Model")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    state = written(theirs)
    inner = next((t.shape[0] for name, t in state.items() if name.endswith("weights_in.weight")), HIDDEN)
    card = replace(card, shape=replace(card.shape, mlp=inner))
    network = card_network(card).eval()
    network.load_state_dict(to_card(state, card), strict=True)
    image = torch.randn(2, 3, 224, 224, generator=generator)
    with torch.inference_mode():
        out = theirs(image, interpolate_pos_encoding=True) if name == "phikon" else theirs(image)
        tokens = out.last_hidden_state
        torch.testing.assert_close(network.pool(tokens), network(image), rtol=1e-3, atol=1e-4)


def test_equals_transformers_clip() -> None:
    library = transformers_or_skip()
    card, _ = published("plip")
    config = library.CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, patch_size=32,
        projection_dim=DIM,
    )  # fmt: skip
    theirs = library.CLIPVisionModelWithProjection(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    network = card_network(card).eval()
    network.load_state_dict(to_card(written(theirs), card), strict=True)
    image = torch.randn(2, 3, 224, 224, generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(image).image_embeds, network(image), rtol=1e-3, atol=1e-3)


def written(model: Any) -> dict[str, Tensor]:
    """The names that the library writes into a file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return dict(read_weights(Path(folder) / "model.safetensors"))

"""Facts on each hub encoder.

Sources: the model cards and configurations named by ``hub`` (as transcribed in public registries), parameter counts
published for them, digests that the hub lists. A licence stands here for orientation only; the model card decides.
"""

from __future__ import annotations

from equipoise.models.encoders.card import ModelCard, Pairings, Triple
from equipoise.models.encoders.shape import PoolerShape, ProjectionShape, VitShape

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: tuple[Triple, Triple] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
BIOPTIMUS: tuple[Triple, Triple] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
HIBOU: tuple[Triple, Triple] = ((0.7068, 0.5755, 0.7220), (0.1950, 0.2316, 0.1816))
HALVES: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

#: Published work with these encoders cuts tiles of 256 px at 20x and resizes them.
_AT_20X_OR_256: Pairings = ((0.5, 224), (0.5, 256))
_FOUR_SCALES: Pairings = ((0.25, 224), (0.5, 224), (1.0, 224), (2.0, 224))

_LARGE_16 = VitShape(width=1024, depth=24, heads=16, patch=16, mlp=4096)
_LARGE_14 = VitShape(1024, 24, 16, patch=14, mlp=4096)
_BASE_14 = VitShape(768, 12, 12, patch=14, mlp=4096, swiglu=True, registers=4, prefix_positions=False)
_HUGE_14 = VitShape(1280, 32, 16, patch=14, mlp=6832, swiglu=True, pooling="token_and_mean")
_HUGE_14_REGISTERS = VitShape(
    1280, 32, 16, patch=14, mlp=6832, swiglu=True, registers=4, pooling="token_and_mean"
)
_GIANT_14_REGISTERS = VitShape(
    1536, 40, 24, patch=14, mlp=8192, swiglu=True, registers=4, prefix_positions=False
)

_NC_ND = "CC-BY-NC-ND 4.0"

_CARDS = (
    ModelCard(
        "uni",
        "UNI (Mahmood Lab): ViT-L/16, 1024-d",
        "MahmoodLab/UNI",
        _LARGE_16,
        licence=_NC_ND,
        gated=True,
        file="pytorch_model.bin",
        sha256="56ef09b44a25dc5c7eedc55551b3d47bcd17659a7a33837cf9abc9ec4e2ffb40",
        pairings=_AT_20X_OR_256,
        basis="magnification",
        fit="bilinear",
    ),
    ModelCard(
        "uni2_h",
        "UNI2-h (Mahmood Lab): ViT-H/14 with 8 registers, 1536-d",
        "MahmoodLab/UNI2-h",
        VitShape(1536, 24, 24, patch=14, mlp=8192, swiglu=True, registers=8, prefix_positions=False),
        licence=_NC_ND,
        gated=True,
        file="pytorch_model.bin",
        sha256="6e077eda234bebc595868d918d3458d9dd32a050199b0ff04443b2f46a0a3b1e",
        pairings=_AT_20X_OR_256,
        fit="bilinear",
        precision="bfloat16",
    ),
    ModelCard(
        "virchow",
        "Virchow (Paige): ViT-H/14, class token and mean, 2560-d",
        "paige-ai/Virchow",
        _HUGE_14,
        licence="Apache 2.0",
        gated=True,
        sha256="3416891b37a2349a2d9ce7ecf00b64a6277011b41351436c1ceb0abb80805408",
        basis="stated",
    ),
    ModelCard(
        "virchow2",
        "Virchow2 (Paige): ViT-H/14 with 4 registers, class token and mean, 2560-d",
        "paige-ai/Virchow2",
        _HUGE_14_REGISTERS,
        licence=_NC_ND,
        gated=True,
        sha256="8d6cea947eb2418c3b0dff48cfb9b238e47744ab0dfca21b2b0637b140769b4b",
        pairings=_FOUR_SCALES,
        basis="stated",
    ),
    ModelCard(
        "h_optimus_0",
        "H-optimus-0 (Bioptimus): ViT-g/14 with 4 registers, 1536-d",
        "bioptimus/H-optimus-0",
        _GIANT_14_REGISTERS,
        licence="Apache 2.0",
        gated=True,
        file="pytorch_model.bin",
        sha256="bf47b8467403079798661601b6ab06533be789da48d3f8b510aaefe2fbc55cd3",
        basis="stated",
        normalisation=BIOPTIMUS,
    ),
    ModelCard(
        "h_optimus_1",
        "H-optimus-1 (Bioptimus): ViT-g/14 with 4 registers, 1536-d",
        "bioptimus/H-optimus-1",
        _GIANT_14_REGISTERS,
        licence=_NC_ND,
        gated=True,
        sha256="c4f1e5b457ddf00679626053b0bf2899be6a19c3a04ad191c87ad1cdfd1abfe1",
        basis="stated",
        normalisation=BIOPTIMUS,
    ),
    ModelCard(
        "gigapath",
        "Prov-GigaPath tile encoder: ViT-g/16, 1536-d",
        "prov-gigapath/prov-gigapath",
        VitShape(1536, 40, 24, patch=16, mlp=8192, swiglu=True),
        licence="Apache 2.0, with restrictions in the card",
        gated=True,
        file="pytorch_model.bin",
        sha256="877947214318afa9e011754b74bbc3894a1f480a253afc7bc8045b8321dedd63",
        pairings=((0.5, 256),),
        basis="stated",
        crop_from=256,
    ),
    ModelCard(
        "phikon_v2",
        "Phikon-v2 (Owkin): ViT-L/16, 1024-d",
        "owkin/phikon-v2",
        _LARGE_16,
        licence="Owkin, non-commercial",
        gated=False,
        sha256="261ae680fa699b3b951597fd57aa19c02ef735805acb104b93af69b36d928569",
        basis="stated",
        precision="float32",
        layout="transformers",
        regrid="transformers",
        drops=("embeddings.mask_token",),
    ),
    ModelCard(
        "midnight",
        "Midnight-12k (kaiko.ai): ViT-g/14, class token and mean, 3072-d",
        "kaiko-ai/midnight",
        VitShape(1536, 40, 24, patch=14, mlp=8192, swiglu=True, pooling="token_and_mean"),
        licence="MIT",
        gated=False,
        sha256="52c14f20386ca17c2af8a7bf32c31c352668a8fbf6aefc88d86be6eaa0c72ca1",
        pairings=_FOUR_SCALES,
        normalisation=HALVES,
        fit="bilinear",
        precision="float32",
        layout="transformers",
        regrid="transformers",
        drops=("embeddings.mask_token",),
    ),
    ModelCard(
        "kaiko_vitl14",
        "kaiko.ai ViT-L/14 with 4 registers, 1024-d",
        "1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms",
        VitShape(1024, 24, 16, patch=14, mlp=4096, registers=4, prefix_positions=False),
        licence="Kaiko Non-Commercial Public License v1",
        gated=False,
        sha256="149c8b21c60a7115a17572073b09ef142411c91b5194c84a99ebba8b83f20e69",
        pairings=_AT_20X_OR_256,
        normalisation=HALVES,
        fit="bilinear",
        precision="float32",
        regrid="timm",  # the file has the 37 x 37 positions of 518 px
    ),
    ModelCard(
        "lunit_vits8",
        "Lunit DINO ViT-S/8, 384-d",
        "1aurent/vit_small_patch8_224.lunit_dino",
        VitShape(384, 12, 6, patch=8, mlp=1536, layer_scale=False),
        licence="Lunit, non-commercial",
        gated=False,
        sha256="0b7e0236ce430064b31485bbb6f85e661dc5eca0cde709e8f04d59f1c2b23e0b",
        pairings=((0.5, 224), (0.25, 224)),
        basis="magnification",
        crop_from=248,  # 224 / 0.9, as timm's transform of the hub's configuration
        precision="float32",
    ),
    ModelCard(
        "phikon",
        "Phikon (Owkin): ViT-B/16, 768-d",
        "owkin/phikon",
        VitShape(768, 12, 12, patch=16, mlp=3072, layer_scale=False),
        licence="Owkin, non-commercial",
        gated=False,
        sha256="d01642bfeb683c6b039622eca273e0a8e4208065a4595b63edba178c1c4cfa68",
        basis="magnification",
        fit="bilinear",
        precision="float32",
        layout="transformers",
        drops=("pooler.",),
    ),
    ModelCard(
        "hibou_b",
        "Hibou-B (HistAI): ViT-B/14 with 4 registers, 768-d",
        "histai/hibou-b",
        _BASE_14,
        licence="Apache 2.0",
        gated=True,
        sha256="2121db3cac83bc9abf13a458a37b0740e2ce725609ff8d4b8e6b6c56c30c3ab6",
        normalisation=HIBOU,
        precision="float32",
        layout="transformers",
        drops=("embeddings.mask_token",),
    ),
    ModelCard(
        "hibou_l",
        "Hibou-L (HistAI): ViT-L/14 with 4 registers, 1024-d",
        "histai/hibou-L",
        VitShape(1024, 24, 16, patch=14, mlp=5472, swiglu=True, registers=4, prefix_positions=False),
        licence="Apache 2.0",
        gated=True,
        sha256="a63d1699448143ceccf2b7e1c4bf35b995c51f86ef8a6efb471af2eee210b79c",
        normalisation=HIBOU,
        precision="float32",
        layout="transformers",
        drops=("embeddings.mask_token",),
    ),
    ModelCard(
        "h0_mini",
        "H0-mini (Bioptimus): ViT-B/14 with 4 registers, class token, 768-d",
        "bioptimus/H0-mini",
        _BASE_14,
        licence=_NC_ND,
        gated=True,
        sha256="5e4de45a6527a8160f7c21fe3105c987757efe30ce581e1f2cf5809476069ade",
        basis="magnification",
        normalisation=BIOPTIMUS,
    ),
    ModelCard(
        "gpfm",
        "GPFM: ViT-L/14, 1024-d",
        "majiabo/GPFM",
        _LARGE_14,
        licence="MIT on the hub, CC-BY-NC-ND 4.0 in the authors' repository",
        gated=False,
        file="GPFM.pth",
        sha256="ebde1a9d7d9098848034bcff30f8771034c8d0b69e32846fa266940f2fd4604c",
        # Trained on 512 px at 40x, resized to 224: 128 um, however they are cut.
        pairings=((0.25, 512), (0.5, 256), (128 / 224, 224)),
        basis="magnification",
        precision="float32",
    ),
    ModelCard(
        "keep",
        "KEEP: ViT-L/16 of a vision-language model, projected, 768-d of length 1",
        "Astaxanthin/KEEP",
        _LARGE_16,
        licence="MIT",
        gated=False,
        sha256="82f610d5359aca67b5fd5d841009f26db430ae78d0693743589c0a727b0a146d",
        pairings=_AT_20X_OR_256,
        precision="float32",
        head=ProjectionShape(768),
        renames=(("visual.", "trunk."), ("visual_head.", "head.layers.")),
        drops=("text.", "logit_scale"),
    ),
    ModelCard(
        "openmidnight",
        "OpenMidnight (SophontAI, MedARC): ViT-g/14 with 4 registers, 1536-d",
        "SophontAI/OpenMidnight",
        _GIANT_14_REGISTERS,
        licence="Apache 2.0",
        gated=True,
        file="teacher_checkpoint_load.pt",
        sha256="b57121fc10e2b04c9e85514fa5e4c23b75329301e05bfc756c3bca57312505be",
        fit="bilinear",
        precision="float32",
        layout="dinov2",
        drops=("mask_token",),
    ),
    ModelCard(
        "conch",
        "CONCH (Mahmood Lab): ViT-B/16 of a vision-language model, pooled by attention, 512-d",
        "MahmoodLab/CONCH",
        VitShape(768, 12, 12, patch=16, mlp=3072, image=448, layer_scale=False),
        licence=_NC_ND,
        gated=True,
        file="pytorch_model.bin",
        sha256="40a9644b9ba0e83a74576e0a5e5f7313599fa9c9cdaf3c20f8a3e271b0e9ae7c",
        pairings=((0.5, 448), (0.5, 512)),
        normalisation=CLIP,
        precision="float32",
        head=PoolerShape(512, biased=True),
        renames=(
            ("visual.trunk.", "trunk."),
            ("visual.attn_pool_contrast.", "head.pool."),
            ("visual.ln_contrast.", "head.norm."),
        ),
        # The vector is taken before the projection into the space shared with text.
        drops=(
            "visual.proj_contrast",
            "visual.attn_pool_caption.",
            "visual.ln_caption.",
            "text",
            "logit_scale",
        ),
    ),
    ModelCard(
        "conch_v1_5",
        "CONCH v1.5 (Mahmood Lab): ViT-L/16, pooled by attention, 768-d",
        "MahmoodLab/TITAN",
        VitShape(1024, 24, 16, patch=16, mlp=4096, image=448),
        licence=_NC_ND,
        gated=True,
        file="conch_v1_5_pytorch_model.bin",
        sha256="09daf1912a016512e084636f9c76eee7c42f5c1f09b0461bb76082a3e0fecfa5",
        pairings=((0.5, 512),),
        basis="magnification",
        fit="bilinear",
        head=PoolerShape(768, biased=False),
        regrid="dinov2",
        renames=(("attn_pool_contrast.", "head.pool."), ("ln_contrast.", "head.norm.")),
    ),
)

#: Every card by its name.
CARDS: dict[str, ModelCard] = {card.name: card for card in _CARDS}

"""The pictures that come with a slide: its label and a photograph of the glass. Both say SYNTHETIC."""

import numpy as np
from PIL import Image, ImageDraw

LABEL_SIZE = (400, 400)
MACRO_SIZE = (1280, 432)


def label_picture(barcode: str, cohort: str) -> np.ndarray:
    """Paper label, uint8 ``[h, w, 4]``."""
    picture = Image.new("RGBX", LABEL_SIZE, (250, 249, 242))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((6, 6, 393, 393), outline=(60, 60, 60), width=2)
    draw.text((24, 20), "SYNTHETIC", fill=(190, 20, 20), font_size=52)
    draw.text((24, 84), "no patient, not for diagnosis", fill=(30, 30, 30), font_size=22)
    draw.text((24, 124), barcode[:12], fill=(0, 0, 0), font_size=40)
    draw.text((24, 172), barcode[12:].lstrip("-"), fill=(0, 0, 0), font_size=28)
    draw.text((24, 208), f"{cohort}   H&E", fill=(0, 0, 0), font_size=26)
    x = 24
    for k, byte in enumerate(barcode.encode()):
        for bit in range(4):
            width = 1 + ((byte >> (2 * bit)) & 3)
            if (bit + k) % 2 == 0:
                draw.rectangle((x, 262, x + width - 1, 366), fill=(0, 0, 0))
            x += width
            if x > 372:
                return np.asarray(picture)
    return np.asarray(picture)


def macro_picture(thumbnail: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Overview of the glass slide with label and tissue, uint8 ``[h, w, 4]``."""
    width, height = MACRO_SIZE
    picture = Image.new("RGBX", MACRO_SIZE, (226, 228, 226))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((8, 8, width - 9, height - 9), fill=(240, 241, 240), outline=(170, 180, 176), width=3)
    paper = Image.fromarray(label, "RGBX") if label.shape[2] == 4 else Image.fromarray(label)
    picture.paste(paper.resize((372, 372)).convert("RGBX"), (24, 30))
    tissue = Image.fromarray(np.ascontiguousarray(thumbnail[..., :3])).convert("RGBX")
    scale = min(380 / tissue.height, 820 / tissue.width)
    tissue = tissue.resize((round(tissue.width * scale), round(tissue.height * scale)))
    picture.paste(tissue, (420 + (820 - tissue.width) // 2, (height - tissue.height) // 2))
    return np.asarray(picture)

"""Differences between cancer types: offsets of the morphology, survival, molecular subtypes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cancer:
    """One cancer type.

    Parameters
    ----------
    stroma, grade, mucin
        Offsets on the latents before they become morphology.
    gland_um
        Mean distance of neighbouring glands.
    median_days
        Scale of the Weibull survival time: the median at hazard ratio 1.
    subtypes
        Name of each molecular subtype and the weights of (msi, hrd, immune, mucin, grade, proliferation,
        stroma) in its score; the highest score plus noise names the subtype.
    fat
        Probability that a slide reaches into fatty tissue.
    """

    stroma: float
    grade: float
    mucin: float
    gland_um: float
    median_days: float
    fat: float
    subtypes: dict[str, tuple[float, float, float, float, float, float, float]]


CANCERS: dict[str, Cancer] = {
    "crc": Cancer(
        stroma=0.0,
        grade=-0.35,
        mucin=0.0,
        gland_um=150,
        median_days=2600,
        fat=0.45,
        subtypes={
            "CMS1": (3.0, -0.2, 0.3, 0.2, 0.2, 0.0, -0.2),
            "CMS2": (-1.0, 0.3, -0.4, -0.4, -0.2, 0.5, -0.4),
            "CMS3": (0.0, 0.0, -0.1, 0.8, -0.3, -0.5, -0.3),
            "CMS4": (-1.0, 0.2, -0.1, -0.1, 0.3, -0.2, 1.0),
        },
    ),
    "luad": Cancer(
        stroma=0.1,
        grade=0.25,
        mucin=-0.9,
        gland_um=115,
        median_days=1500,
        fat=0.10,
        subtypes={
            "TRU": (0.0, -0.5, 0.0, 0.4, -0.9, -0.8, 0.0),
            "PP": (0.0, 0.6, -0.5, -0.2, 0.4, 0.8, 0.0),
            "PI": (0.5, 0.2, 0.9, -0.2, 0.5, 0.3, 0.2),
        },
    ),
    "ucec": Cancer(
        stroma=-0.3,
        grade=-0.15,
        mucin=-0.6,
        gland_um=130,
        median_days=3200,
        fat=0.15,
        subtypes={
            "POLE": (-1.0, -0.5, 0.9, 0.0, 0.5, 0.2, -0.3),
            "MSI": (4.0, -1.0, 0.2, 0.0, 0.0, 0.0, 0.0),
            "CN_LOW": (-1.0, -0.8, -0.2, 0.3, -0.8, -0.5, 0.3),
            "CN_HIGH": (-1.0, 2.5, -0.1, -0.2, 0.8, 0.6, 0.0),
        },
    ),
}

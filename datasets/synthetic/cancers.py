"""Differences between cancer types: offsets of the morphology, survival, molecular subtypes."""

from dataclasses import dataclass, field


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
    consensus
        Subtype → one of three classes that every cancer has: what can be predicted across cancers.
    programmes
        Programme → its activity in this organ, relative to others; only with the knob ``organ``.
    """

    stroma: float
    grade: float
    mucin: float
    gland_um: float
    median_days: float
    fat: float
    subtypes: dict[str, tuple[float, float, float, float, float, float, float]]
    consensus: dict[str, str]
    programmes: dict[str, float] = field(default_factory=dict)


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
        consensus={
            "CMS1": "inflamed",
            "CMS2": "proliferative",
            "CMS3": "quiescent",
            "CMS4": "quiescent",
        },
        programmes={"WNT": 2.0, "DIFF": 1.5},
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
        consensus={"TRU": "quiescent", "PP": "proliferative", "PI": "inflamed"},
        programmes={"HYPOXIA": 1.0, "DIFF": -1.0},
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
        consensus={
            "POLE": "inflamed",
            "MSI": "inflamed",
            "CN_LOW": "quiescent",
            "CN_HIGH": "proliferative",
        },
        programmes={"EMT": -1.0, "WNT": 0.5},
    ),
    "stad": Cancer(
        stroma=0.25,
        grade=0.05,
        mucin=-0.3,
        gland_um=125,
        median_days=1400,
        fat=0.25,
        subtypes={
            "EBV": (-1.0, -0.3, 1.0, 0.0, 0.2, 0.2, -0.2),
            "MSI": (3.5, -0.5, 0.3, 0.2, 0.1, 0.0, -0.2),
            "GS": (-1.0, -0.4, -0.2, 0.2, 0.2, -0.6, 0.9),
            "CIN": (-1.0, 0.6, -0.4, -0.3, 0.2, 0.7, -0.3),
        },
        consensus={"EBV": "inflamed", "MSI": "inflamed", "GS": "quiescent", "CIN": "proliferative"},
        programmes={"IFNG": 1.0, "EMT": 1.0},
    ),
    "ov": Cancer(
        stroma=-0.1,
        grade=0.35,
        mucin=-1.1,
        gland_um=100,
        median_days=1200,
        fat=0.20,
        subtypes={
            "IMR": (0.8, 0.0, 1.0, 0.0, 0.1, 0.0, -0.3),
            "MES": (-0.3, 0.0, 0.0, 0.0, 0.2, -0.2, 1.0),
            "PRO": (-0.3, 0.6, -0.5, -0.2, 0.5, 0.8, -0.2),
            "DIF": (0.0, -0.3, -0.1, 0.4, -0.9, -0.6, -0.2),
        },
        consensus={"IMR": "inflamed", "MES": "quiescent", "PRO": "proliferative", "DIF": "quiescent"},
        programmes={"HRD": 1.5, "HYPOXIA": -1.0},
    ),
}

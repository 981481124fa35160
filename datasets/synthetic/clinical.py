"""Clinical table of one patient: scores, labels and survival from the latents.

Every label carries fresh noise, so that even the true latents do not predict it perfectly.
"""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.cancers import CANCERS
from equipoise.datasets.synthetic.latents import Latents
from equipoise.datasets.synthetic.morphology import sigmoid
from equipoise.datasets.synthetic.params import Knobs

#: Labels that may be missing with ``Knobs.missing_label`` and ``Knobs.missing_tme``. Survival goes as one
#: label.
LABELS = ("MSI", "HRD", "HRD_SCORE", "GRADE", "STAGE", "SUBTYPE", "AGE", "SEX", "OS")
TME = ("LISS", "LF", "SF", "Prolif", "ITH")
COLUMNS = (
    "PATIENT",
    "AGE",
    "SEX",
    "STAGE",
    "GRADE",
    "SUBTYPE",
    "MSI",
    "HRD",
    "HRD_SCORE",
    *TME,
    "OS_DAYS",
    "OS_EVENT",
)

_WEIBULL_SHAPE = 1.25


@dataclass(frozen=True, slots=True)
class Survival:
    """Observed follow-up and, for ``truth/``, the log hazard behind it."""

    days: int
    event: bool
    log_hazard: float
    shared: float


def draw_labels(rng: np.random.Generator, latents: Latents, cancer: str, knobs: Knobs) -> dict[str, object]:
    """All labels but survival, none missing."""
    x = latents
    liss, lf, sf, prolif, ith = rng.normal(0, knobs.tme_noise, 5)
    hrd_score = 22 + 9 * x.heterogeneity + 26 * x.hrd - 6 * x.msi + rng.normal(0, 5)
    grade_score = x.grade + rng.normal(0, 0.5)
    stage_score = 0.35 * x.grade + 0.25 * x.stroma - 0.25 * x.immune + rng.normal(0, 0.9)
    return {
        "AGE": int(np.clip(round(rng.normal(66, 11) + 3 * x.msi), 24, 95)),
        "SEX": "female" if cancer == "ucec" or rng.random() < 0.48 else "male",
        "STAGE": ("I", "II", "III", "IV")[int(np.digitize(stage_score, (-0.75, 0.35, 1.2)))],
        "GRADE": ("G1", "G2", "G3")[int(np.digitize(grade_score, (-0.8, 0.7)))],
        "SUBTYPE": _subtype(rng, x, cancer),
        "MSI": "MSI-H" if x.msi else "MSS",
        "HRD": "HRD" if x.hrd else "HRP",
        "HRD_SCORE": float(np.clip(hrd_score, 0, 100)),
        "LISS": float(x.immune + liss),
        "LF": sigmoid(-1.6 + 0.75 * (x.immune + lf)),
        "SF": sigmoid(-0.9 + 0.7 * (x.stroma + sf)),
        "Prolif": float(0.8 * (x.proliferation + prolif)),
        "ITH": float(max(0.0, 0.12 + 0.07 * (x.heterogeneity + ith))),
    }


def draw_survival(
    rng: np.random.Generator, latents: Latents, age: int, cancer: str, knobs: Knobs
) -> Survival:
    """Weibull time to death, censored by end of follow-up or loss.

    The log hazard is a sum of a part that both modalities show, a part only omics show and a part only the
    slide shows.
    """
    x = latents
    shared = (0.55 * x.grade + 0.5 * x.proliferation - 0.6 * x.immune + 0.35 * x.stroma) / 1.1
    eta = (
        knobs.b_shared * shared
        + knobs.b_omics * x.omics_only
        + knobs.b_image * x.image_only
        + 0.02 * (age - 66)
    )
    k = _WEIBULL_SHAPE
    scale = CANCERS[cancer].median_days * np.log(2) ** (-1 / k)
    death = scale * (-np.log(1 - rng.random()) / np.exp(eta)) ** (1 / k)
    censored = min(rng.uniform(365, 3650), rng.exponential(5200))
    days = int(max(1, np.ceil(min(death, censored))))
    return Survival(days, bool(death <= censored), float(eta), float(shared))


def _subtype(rng: np.random.Generator, x: Latents, cancer: str) -> str:
    subtypes = CANCERS[cancer].subtypes
    traits = np.array([x.msi, x.hrd, x.immune, x.mucin, x.grade, x.proliferation, x.stroma], float)
    scores = np.array(list(subtypes.values())) @ traits + rng.normal(0, 0.5, len(subtypes))
    return list(subtypes)[int(np.argmax(scores))]

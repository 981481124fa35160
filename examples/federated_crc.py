"""SYNTHETIC features for ``examples/federated_crc.yaml``: a bag per patient, drawn from the patient's real labels.

::

    python examples/federated_crc.py                  # reads the study's tables, writes examples/federated_crc/
    equipoise federate -c examples/federated_crc.yaml

A patient with MSI gets the tissue that the built-in cohorts draw under MSI (more lymphocytes, mucin, higher grade), a
high leukocyte fraction more lymphocytes. No slide was read.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.datasets.cohorts.cohort import load_cohorts
from equipoise.datasets.synthetic.bags import draw_bag, write_bag
from equipoise.datasets.synthetic.catalogue import SITES
from equipoise.datasets.synthetic.latents import draw_latents
from equipoise.datasets.synthetic.morphology import draw_morphology
from equipoise.datasets.synthetic.params import Knobs
from equipoise.datasets.synthetic.seeds import Purpose, stream
from equipoise.platform.run.loading import load_study

#: Cohort of the study → the built-in hospital whose shift of features it gets.
STYLES = {"TCGA-CRC": SITES["syn-crc-a"], "CPTAC-COAD": SITES["syn-crc-b"]}


def write_features(study_file: Path, out: Path, every: int = 1) -> dict[str, int]:
    """Write ``<cohort>/slides.csv`` and ``<cohort>/features/*.h5``; returns the number of patients of each cohort.

    ``every`` takes one patient out of so many, for a quick try; the study leaves out patients without a slide.
    """
    study = load_study(study_file)
    labels_only = [source.model_copy(update={"slides": None, "slides_dir": None}) for source in study.cohorts]
    patients = load_cohorts(labels_only, study.tasks, None, study.base).patients
    fraction = patients["LF"]
    lymphocytes = ((fraction - fraction.mean()) / fraction.std()).fillna(0.0)
    written = {}
    for name, style in STYLES.items():
        rows = patients[patients["cohort"] == name].sort_values("patient").iloc[::every]
        (out / name / "features").mkdir(parents=True, exist_ok=True)
        files = []
        for number, (index, row) in enumerate(rows.iterrows(), start=1):
            rng = stream(study.seed, style.number, number, Purpose.LATENTS)
            latents = draw_latents(rng, msi=row["MSI"] == 1, hrd=False, style=style, knobs=Knobs())
            latents = dataclasses.replace(latents, immune=latents.immune + 0.8 * float(lymphocytes[index]))
            tissue = draw_morphology(
                stream(study.seed, style.number, number, Purpose.MORPHOLOGY), latents, style.cancer, Knobs()
            )
            bag = draw_bag(
                stream(study.seed, style.number, number, Purpose.BAG), tissue, study.seed, style.number
            )
            files.append(f"{row['patient']}.h5")
            write_bag(out / name / "features" / files[-1], *bag)
        table = pd.DataFrame({"PATIENT": rows["patient"], "FILENAME": np.array(files, object)})
        table.to_csv(out / name / "slides.csv", index=False)
        written[name] = len(files)
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--study", type=Path, default=here / "federated_crc.yaml")
    parser.add_argument("-o", "--out", type=Path, default=here / "federated_crc")
    parser.add_argument("--every", type=int, default=1, help="one patient out of so many [1]")
    asked = parser.parse_args()
    for cohort, count in write_features(asked.study, asked.out, asked.every).items():
        print(f"{cohort}: SYNTHETIC features of {count} patients")

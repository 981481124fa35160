"""What can be learned from the built-in cohorts: SYNTHETIC signal, seen by a plain linear baseline.

Slides in the style of two colorectal sites (``syn-crc-a``, ``syn-crc-b``; both at 0.5 um/px, 1.28 mm wide) are
written, read back with the project's own reader and tile plan, encoded with ``handcrafted`` features and
averaged. Image against omics against the true hazard, in the same run and on the same patients:

- MSI from the image, logistic regression on 16 principal components: within a site (5 folds) and across sites
  (fitted on all patients of one, scored on the other);
- survival from the image and from scores of gene sets, Cox on 16 principal components; the oracle is the true
  log hazard, which no model sees;
- the site itself from the image.

Everything that is fitted (scales, components, models) is fitted on training patients only. Nothing here was
chosen after a look at results: models have the defaults of their libraries but for a fixed ridge penalty of Cox.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.datasets.slides.grid import plan_tiles
from equipoise.datasets.slides.reader import SlideReader, open_slide
from equipoise.datasets.slides.tiles import read_block, tile_blocks
from equipoise.datasets.slides.tissue import TissueParams, find_tissue
from equipoise.datasets.synthetic.catalogue import SITES
from equipoise.datasets.synthetic.generate import VERSION, PatientJob, plan, write_patient, write_tables
from equipoise.datasets.synthetic.genes import MARKERS, PROGRAMMES
from equipoise.datasets.synthetic.params import CohortPlan, Knobs, Preset
from equipoise.models.encoders.handcrafted import Handcrafted

#: Seeds that were not used while the generator was written.
SEEDS = (11, 12, 13)
PATIENTS = 110
COHORTS = ("syn-crc-a", "syn-crc-b")
MPP, SIDE_UM, TILE_PX, MIN_TISSUE = 0.5, 1280.0, 224, 0.25
COMPONENTS, FOLDS, REPEATS = 16, 5, 5
COX_PENALTY = 0.1
#: The figures that are promised; the table has more.
KEYS = ("msi_image_auroc", "msi_external_auroc", "os_image_c", "os_omics_c", "oracle_c", "site_auroc")

Matrix = NDArray[np.float64]
Score = Callable[[Matrix, pd.DataFrame, Matrix], NDArray[np.float64]]


@dataclass(frozen=True)
class Site:
    """The patients of one cohort: ``image`` ``[n, 90]``, ``omics`` ``[n, 21]``, labels and true log hazard."""

    image: Matrix
    omics: Matrix
    labels: pd.DataFrame
    log_hazard: NDArray[np.float64]


def preset_of(patients: int) -> Preset:
    """Two sites with complete data: what is missing is another question than what can be learned."""
    cohorts = tuple(
        CohortPlan(
            name=name,
            patients=patients,
            side_um=SIDE_UM,
            style=SITES[name].model_copy(update={"mpp": MPP, "objective": 20}),
        )
        for name in COHORTS
    )
    complete = Knobs(missing_slide=0, missing_rna=0, missing_label=0, missing_tme=0)
    return Preset(name="learnability", cohorts=cohorts, knobs=complete)


def mean_features(job: PatientJob, root: Path) -> NDArray[np.float64]:
    """Write a patient's slide, encode its tiles, average ``[90]``, and delete it."""
    write_patient(job, root)
    path = root / job.cohort / "slides" / job.files[0]
    try:
        with open_slide(path) as reader:
            return _encoded(reader).mean(axis=0)
    finally:
        path.unlink()


def _encoded(reader: SlideReader) -> NDArray[np.float64]:
    """Features ``[tiles, 90]`` of an open slide."""
    encoder = Handcrafted()
    tissue = find_tissue(reader, TissueParams())
    tiles = plan_tiles(tissue, reader.sampling(MPP), reader.level_dimensions, TILE_PX, MIN_TISSUE)
    blocks = [read_block(reader, tiles, places) for places in tile_blocks(reader, tiles)]
    unread = [reason for block in blocks for reason in block.bad]
    if unread:
        raise RuntimeError(f"{len(unread)} tiles of a sound slide cannot be read: {unread[0][1]}")
    return np.concatenate([encoder(block.pixels) for block in blocks]).astype(np.float64)


def load_sites(patients: int, seed: int, pool: ProcessPoolExecutor) -> dict[str, Site]:
    """Both sites of one seed, on disk only while they are read."""
    preset = preset_of(patients)
    jobs = plan(preset, seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tables(preset, seed, root)
        features = np.stack(list(pool.map(partial(mean_features, root=root), jobs, chunksize=4)))
        sites = {}
        for name in COHORTS:
            rows = [k for k, job in enumerate(jobs) if job.cohort == name]
            order = [jobs[k].patient for k in rows]
            clinical = pd.read_csv(root / name / "clinical.csv").set_index("PATIENT").loc[order]
            rna = pd.read_parquet(root / name / "omics" / "rna.parquet").set_index("PATIENT").loc[order]
            truth = pd.read_parquet(root / name / "truth" / "latents.parquet").set_index("PATIENT").loc[order]
            labels = pd.DataFrame(
                {
                    "msi": clinical["MSI"].eq("MSI-H").to_numpy(int),
                    "time": clinical["OS_DAYS"].to_numpy(float),
                    "event": clinical["OS_EVENT"].to_numpy(int),
                }
            )
            hazard = truth["log_hazard"].to_numpy(float)
            sites[name] = Site(features[rows], log_cpm(rna), labels, hazard)
    return sites


def log_cpm(counts: pd.DataFrame) -> Matrix:
    """``log2(1 + counts per million)`` of the genes of the gene sets, ``[patients, genes]``.

    Columns follow :func:`gene_sets`. Depth is that of the whole panel; a patient at a time, nothing is fitted.
    """
    values = counts.to_numpy(float)
    cpm = values / values.sum(axis=1, keepdims=True) * 1e6
    table = pd.DataFrame(np.log2(1 + cpm), columns=counts.columns)
    return table[[gene for members in gene_sets().values() for gene in members]].to_numpy(float)


def gene_sets() -> dict[str, tuple[str, ...]]:
    """Nine programmes and the markers of twelve cell types."""
    return {**PROGRAMMES, **MARKERS}


def set_scores(train: Matrix, test: Matrix) -> tuple[Matrix, Matrix]:
    """Mean z-score of each gene set, ``[n, 21]``; centre and scale of genes from training patients."""
    centre, scale = train.mean(axis=0), train.std(axis=0) + 1e-9
    ends = np.cumsum([len(members) for members in gene_sets().values()])[:-1]

    def scores(values: Matrix) -> Matrix:
        return np.stack([part.mean(axis=1) for part in np.split((values - centre) / scale, ends, 1)], axis=1)

    return scores(train), scores(test)


def components(train: Matrix, test: Matrix) -> tuple[Matrix, Matrix]:
    """Both in the first 16 principal components of the standardised training patients, of unit variance."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    number = min(COMPONENTS, train.shape[1], len(train) - 1)
    fitted = make_pipeline(StandardScaler(), PCA(number, whiten=True, svd_solver="full")).fit(train)
    return fitted.transform(train), fitted.transform(test)


def logistic(label: str, train: Matrix, labels: pd.DataFrame, test: Matrix) -> NDArray[np.float64]:
    """Log odds of a label for test patients."""
    from sklearn.linear_model import LogisticRegression

    x_train, x_test = components(train, test)
    return LogisticRegression(max_iter=1000).fit(x_train, labels[label]).decision_function(x_test)


def cox(train: Matrix, labels: pd.DataFrame, test: Matrix) -> NDArray[np.float64]:
    """Log risk of test patients."""
    from lifelines import CoxPHFitter

    x_train, x_test = components(train, test)
    table = pd.DataFrame(x_train).assign(time=labels["time"].to_numpy(), event=labels["event"].to_numpy())
    fitted = CoxPHFitter(penalizer=COX_PENALTY).fit(table, "time", "event")
    return np.asarray(fitted.predict_log_partial_hazard(pd.DataFrame(x_test)), dtype=float)


def cox_on_sets(train: Matrix, labels: pd.DataFrame, test: Matrix) -> NDArray[np.float64]:
    """As :func:`cox`, on scores of gene sets."""
    return cox(*_with_labels(set_scores(train, test), labels))


def msi_on_sets(train: Matrix, labels: pd.DataFrame, test: Matrix) -> NDArray[np.float64]:
    """As :func:`logistic`, on scores of gene sets."""
    return logistic("msi", *_with_labels(set_scores(train, test), labels))


def _with_labels(pair: tuple[Matrix, Matrix], labels: pd.DataFrame) -> tuple[Matrix, pd.DataFrame, Matrix]:
    return pair[0], labels, pair[1]


def auroc(label: str, labels: pd.DataFrame, score: NDArray[np.float64]) -> float:
    """Area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels[label], score))


def concordance(labels: pd.DataFrame, risk: NDArray[np.float64]) -> float:
    """Harrell's C of a risk."""
    from lifelines.utils import concordance_index

    return float(concordance_index(labels["time"], -risk, labels["event"]))


def within(
    x: Matrix, labels: pd.DataFrame, by: str, fit: Score, metric: Callable[..., float], seed: int
) -> float:
    """Mean metric over repeats of a stratified cross-validation; a repeat's test scores are scored together."""
    from sklearn.model_selection import StratifiedKFold

    number = min(FOLDS, int(labels[by].value_counts().min()))  # fewer only in a quick look
    values = []
    for repeat in range(REPEATS):
        score = np.empty(len(x))
        folds = StratifiedKFold(number, shuffle=True, random_state=1000 * seed + repeat)
        for train, test in folds.split(x, labels[by]):
            score[test] = fit(x[train], labels.iloc[train], x[test])
        values.append(metric(labels, score))
    return float(np.mean(values))


def figures(sites: dict[str, Site], seed: int) -> dict[str, float]:
    """All figures of one seed, by name and site (``a``, ``b``) or direction (``a->b``)."""
    a, b = sites.values()
    msi, msi_metric = partial(logistic, "msi"), partial(auroc, "msi")
    out: dict[str, float] = {}
    for name, site in (("a", a), ("b", b)):
        labels = site.labels
        out[f"msi_image_auroc {name}"] = within(site.image, labels, "msi", msi, msi_metric, seed)
        out[f"msi_omics_auroc {name}"] = within(site.omics, labels, "msi", msi_on_sets, msi_metric, seed)
        out[f"os_image_c {name}"] = within(site.image, labels, "event", cox, concordance, seed)
        out[f"os_omics_c {name}"] = within(site.omics, labels, "event", cox_on_sets, concordance, seed)
        out[f"oracle_c {name}"] = concordance(labels, site.log_hazard)
    for name, source, target in (("a->b", a, b), ("b->a", b, a)):
        for key, fit, metric, what in (
            ("msi_external_auroc", msi, msi_metric, "image"),
            ("msi_omics_external_auroc", msi_on_sets, msi_metric, "omics"),
            ("os_image_external_c", cox, concordance, "image"),
            ("os_omics_external_c", cox_on_sets, concordance, "omics"),
        ):
            score = fit(getattr(source, what), source.labels, getattr(target, what))
            out[f"{key} {name}"] = metric(target.labels, score)
    both = pd.DataFrame({"site": np.repeat([0, 1], [len(a.image), len(b.image)])})
    pixels = np.concatenate([a.image, b.image])
    out["site_auroc a+b"] = within(
        pixels, both, "site", partial(logistic, "site"), partial(auroc, "site"), seed
    )
    return out


def summary(seeds: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Per figure: mean over seeds and sites, spread over seeds (of a seed's mean) and every single value."""
    names = dict.fromkeys(key.split()[0] for key in seeds[0])
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        parts = {key.split()[1]: [seed[key] for seed in seeds] for key in seeds[0] if key.split()[0] == name}
        per_seed = np.mean(list(parts.values()), axis=0)
        rows[name] = {
            "mean": round(float(per_seed.mean()), 3),
            "sd": round(float(per_seed.std(ddof=1)), 3) if len(per_seed) > 1 else None,
            "seeds": np.round(per_seed, 3).tolist(),
            "parts": {part: np.round(values, 3).tolist() for part, values in parts.items()},
        }
    return rows


def _lines(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield f"{'SYNTHETIC':<26} {'mean':>6} {'sd':>6}   seeds"
    for name, row in rows.items():
        spread = "" if row["sd"] is None else f"{row['sd']:.3f}"
        parts = "   ".join(f"{part}: {' '.join(f'{v:.3f}' for v in vs)}" for part, vs in row["parts"].items())
        seeds = " ".join(f"{value:.3f}" for value in row["seeds"])
        yield f"{name:<26} {row['mean']:>6.3f} {spread:>6}   {seeds}   {parts}"


def _one_thread() -> None:
    """Two processes share the machine: OpenCV's own threads would only compete."""
    import cv2

    cv2.setNumThreads(1)


def main() -> None:
    """Generate, encode, fit, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patients", type=int, default=PATIENTS, help="patients of each site")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the processes that render and encode
    started, load = time.perf_counter(), os.getloadavg()[0]
    seeds, counts = [], []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, context, _one_thread) as pool:
        for seed in arguments.seeds:
            sites = load_sites(arguments.patients, seed, pool)
            seeds.append(figures(sites, seed))
            labels = [site.labels for site in sites.values()]
            counts.append(
                {
                    "msi": [int(t["msi"].sum()) for t in labels],
                    "events": [int(t["event"].sum()) for t in labels],
                }
            )
            print(f"seed {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    rows = summary(seeds)
    print("\n".join(_lines(rows)))
    result = {
        "label": "SYNTHETIC",
        **{key: rows[key]["mean"] for key in KEYS},
        "sd": {key: rows[key]["sd"] for key in KEYS},
        "figures": rows,
        "patients_per_site": arguments.patients,
        "seeds": arguments.seeds,
        "counts": counts,
        "wall_s": round(time.perf_counter() - started),
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "generator": VERSION,
        "python": platform.python_version(),
        "versions": {
            name: version(name)
            for name in ("numpy", "scipy", "scikit-learn", "lifelines", "opencv-python-headless")
        },
    }
    if arguments.patients == PATIENTS and tuple(arguments.seeds) == SEEDS:  # not a quick look
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "synthetic.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

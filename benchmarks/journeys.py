"""How many files and functions of the product one pass through a feature enters at run time.

- ``slide``: one slide to the feature store, in this process (planner, encoder, store), without Ray;
- ``tables``: a study file to the cases of the first fold: study, tables, labels, folds, bags from the store;
- ``epoch``: a study file to one epoch of the joint model under ``uncertainty+pcgrad`` over such cases: study, recipe,
  targets, model, balancer, training loop, inner validation, the checkpoint of the epoch;
- ``round``: one round of federated averaging over four clients in this process: settings, targets from sums that
  clients send, model, server, local training, validation of updates, aggregation; no checkpoint.

Each journey runs in a fresh process. A file counts when a function defined in it is entered; what runs while a module
is being imported does not count, nor do the bodies of modules and classes; lambdas and comprehensions are not
functions of their own. Threads count. The figures say how much somebody has to open who wants to follow one pass by
reading, which is why generated methods (of data classes) do not count either.

``--list`` prints the files, with the number of functions entered in each.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(os.path.realpath(__file__)).parent.parent
#: Folders of the product; .src/equipoise holds links to them.
ROOMS = ("platform", "datasets", "models", "jobs")
JOURNEYS = ("slide", "tables", "epoch", "round")
SETTINGS = {"balancing": "uncertainty+pcgrad", "training.epochs": 1, "training.patience": 1}
NOT_FUNCTIONS = ("<module>", "<lambda>", "<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
OPTIMISED = 1  # inspect.CO_OPTIMIZED: set for functions, not for bodies of modules and classes


class Tracer:
    """Functions of the product that are entered inside ``with``, outside of imports."""

    def __init__(self, root: Path) -> None:
        self.rooms = tuple(f"{root / room}{os.sep}" for room in ROOMS)
        self.entered: set[tuple[str, str]] = set()
        self._files: dict[str, str] = {}
        self._importing = threading.local()

    def __enter__(self) -> "Tracer":
        threading.setprofile(self._event)
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code.co_name == "<module>":
            depth = getattr(self._importing, "depth", 0)
            self._importing.depth = max(0, depth + (1 if event == "call" else -1))
        elif event == "call" and not getattr(self._importing, "depth", 0):
            self._enter(code)

    def _enter(self, code: CodeType) -> None:
        name = code.co_filename
        if name not in self._files:
            self._files[name] = os.path.realpath(name)
        file = self._files[name]
        if file.startswith(self.rooms) and code.co_flags & OPTIMISED and code.co_name not in NOT_FUNCTIONS:
            self.entered.add((file, f"{code.co_qualname}:{code.co_firstlineno}"))

    def files(self, root: Path) -> dict[str, int]:
        """File → functions entered in it."""
        found: dict[str, int] = {}
        for file, _ in sorted(self.entered):
            path = os.path.relpath(file, root)
            found[path] = found.get(path, 0) + 1
        return found


class Product:
    """All that this benchmark needs of the product, in one place."""

    def __init__(self) -> None:
        from equipoise.datasets.cohorts.cases import Case
        from equipoise.datasets.cohorts.splits import make_folds
        from equipoise.datasets.synthetic import generate
        from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask
        from equipoise.platform.extraction.params import ExtractionParams
        from equipoise.platform.extraction.pipeline import extract
        from equipoise.platform.federation.params import FederationParams
        from equipoise.platform.federation.simulation.simulation import Simulation
        from equipoise.platform.federation.standardisation import federated_targets
        from equipoise.platform.run.context import RunContext
        from equipoise.platform.run.folder import RunFolder
        from equipoise.platform.run.loading import load_study
        from equipoise.platform.training.batches import CaseList
        from equipoise.platform.training.build import build_model, recipe_of
        from equipoise.platform.training.crossval import fit_recipe, fold_seed
        from equipoise.platform.training.params import TrainingParams
        from equipoise.platform.training.targets import fit_targets

        self.Case, self.CaseList = Case, CaseList
        self.BinaryTask, self.RegressionTask = BinaryTask, RegressionTask
        self.make_folds, self.generate, self.extract, self.load_study = (
            make_folds, generate, extract, load_study,
        )  # fmt: skip
        self.ExtractionParams, self.FederationParams, self.TrainingParams = (
            ExtractionParams, FederationParams, TrainingParams,
        )  # fmt: skip
        self.Simulation, self.federated_targets = Simulation, federated_targets
        self.build_model, self.fit_recipe, self.fold_seed = build_model, fit_recipe, fold_seed
        self.fit_targets, self.recipe_of = fit_targets, recipe_of
        self.RunContext, self.RunFolder = RunContext, RunFolder


def slide(product: Product, folder: Path) -> Callable[[], None]:
    """One slide → store."""
    import pandas as pd

    job = product.generate.plan("tiny", 7)[0]
    product.generate.write_patient(job, folder)
    path = next(path for path in sorted(folder.glob("*/slides/*")) if not path.name.startswith("."))
    table = pd.DataFrame(
        {"slide": [path.stem], "path": [str(path)], "patient": ["p"], "cohort": ["c"], "mpp": [float("nan")]}
    )

    def walk() -> None:
        summary = product.extract(table, product.ExtractionParams(), folder / "features", workers=0)
        assert summary.counts == {"ok": 1}, summary

    return walk


def tables(product: Product, folder: Path) -> Callable[[], None]:
    """Study, tables and store → the cases of one fold."""
    file, _ = _prepared(product, folder)

    def walk() -> None:
        study = product.load_study(file, SETTINGS)
        inputs = product.RunContext(study, product.RunFolder(folder / "run")).inputs
        fold = product.make_folds(inputs.cohorts.patients, study.split_scheme, study.tasks, study.seed)[0]
        cases = inputs.cases("develop")
        assert all(cases[patient].bag.shape[0] for patient in fold.train)

    return walk


def epoch(product: Product, folder: Path) -> Callable[[], None]:
    """Study → one balanced epoch over cases in memory."""
    file, context = _prepared(product, folder)
    cases, study = dict(context.inputs.cases("develop")), context.study
    patients = context.inputs.cohorts.patients
    fold = product.make_folds(patients, study.split_scheme, study.tasks, study.seed)[0]

    def walk() -> None:
        study = product.load_study(file, SETTINGS)
        recipe = product.recipe_of(study)
        train, val = (product.CaseList(cases, part) for part in (fold.train, fold.val))
        targets = product.fit_targets(study.tasks, train, tables=recipe.tables)
        seed = product.fold_seed(recipe.seed, fold)
        model = product.build_model(
            recipe.model, recipe.model_params, targets.shape, targets.heads, seed=seed
        )
        result = product.fit_recipe(model, targets, train, val, recipe, seed, None, folder / "checkpoint.pt")
        assert len(result.history) == 1

    return walk


def _prepared(product: Product, folder: Path) -> tuple[Path, Any]:
    """A study of the ``tiny`` cohorts with its features in the store, and its context."""
    for job in product.generate.plan("tiny", 7):
        product.generate.write_patient(job, folder)
    product.generate.write_tables("tiny", 7, folder)
    file = folder / "study.yaml"
    file.write_text(product.generate.study_yaml("tiny", 7), "utf-8")
    study = product.load_study(file, SETTINGS)
    context = product.RunContext(study, product.RunFolder(folder / "run"))
    product.extract(context.cohorts.slides, study.features, context.store_root, workers=0)
    return file, context


def round_(product: Product, folder: Path) -> Callable[[], None]:
    """One round of federated averaging."""
    from functools import partial

    import numpy as np

    tasks = (
        product.BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS", main=True),
        product.RegressionTask(name="LF", column="LF"),
    )
    rng = np.random.default_rng(0)
    clients = {}
    for client in "ABCD":
        cases = {}
        for at in range(8):
            bag = rng.normal(size=(3, 4)).astype(np.float16)
            name = f"{client}-{at}"
            labels = {"MSI": float(at % 2), "LF": float(bag.mean())}
            corners = np.zeros((3, 2), np.int32)
            cases[name] = product.Case(name, "SYN", client, bag, corners, (name,), (3,), {}, labels)
        clients[client] = product.CaseList(cases, tuple(cases))
    settings = {
        "rounds": 1,
        "backend": "inline",
        "local": {"epochs": 1, "optimizer": "sgd", "lr": 0.05, "batch": 4},
    }

    def walk() -> None:
        params = product.FederationParams.model_validate(settings)
        targets = product.federated_targets(tasks, clients)
        factory = partial(product.build_model, "mean_pool", {"dim": 8}, targets.shape, targets.heads, seed=1)
        training = product.TrainingParams(device="cpu")
        result = product.Simulation(factory, targets, clients, params, seed=0, training=training).run()
        assert result.history[0]["accepted"] == len(clients)

    return walk


def trace(name: str, root: Path) -> dict[str, int]:
    """File → functions entered, of one journey in this process."""
    prepare = {"slide": slide, "tables": tables, "epoch": epoch, "round": round_}[name]
    with tempfile.TemporaryDirectory(prefix="journey-") as folder:
        walk = prepare(Product(), Path(folder))
        with Tracer(root) as tracer:
            walk()
    return tracer.files(root)


def main() -> None:
    """Print the table, keep the figures beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print the files of every journey")
    parser.add_argument(
        "--journey", choices=JOURNEYS, help="only this one, in this process; prints its files as JSON"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="repository of the product")
    parser.add_argument("--out", type=Path, help="where the figures go [results/journeys.json]")
    arguments = parser.parse_args()
    if arguments.journey:
        print(json.dumps(trace(arguments.journey, Path(os.path.realpath(arguments.root)))))
        return
    found: dict[str, dict[str, int]] = {}
    for name in JOURNEYS:
        command = [
            sys.executable,
            os.path.abspath(__file__),
            "--journey",
            name,
            "--root",
            str(arguments.root),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found[name] = json.loads(ended.stdout.splitlines()[-1])
    figures: dict[str, Any] = {}
    print(f"{'journey':<10} {'files':>6} {'functions':>10} {'lines of these files':>22}")
    for name, files in found.items():
        lines = sum(len((arguments.root / file).read_text("utf-8").splitlines()) for file in files)
        print(f"{name:<10} {len(files):>6} {sum(files.values()):>10} {lines:>22}")
        figures |= {
            f"{name}_files": len(files),
            f"{name}_functions": sum(files.values()),
            f"{name}_lines": lines,
        }
        for file, functions in files.items() if arguments.list else ():
            print(f"    {file:<60} {functions:>4}")
    figures["versions"] = {name: version(name) for name in ("torch", "numpy")} | {
        "python": platform.python_version()
    }
    results = arguments.out or Path(__file__).parent / "results" / "journeys.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""The cases of :mod:`benchmarks.references`: one command with small settings for every method and strategy."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.reference_outputs import Collect, of_extraction, of_federation, of_run, of_search

JOINT = {"kind": "joint", "dim": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 16}
CONCAT = {"kind": "concat", "modalities": ["wsi", "rna", "clinical"], "dim": 16, "hidden": 8, "layers": 1}
TABLES = {
    "clinical": [{"column": "AGE", "type": "number"}, {"column": "SEX", "type": "category"}],
    "rna": {"genes": 40},
}
#: Of every case but the preset itself.
SMALL: dict[str, Any] = {
    "model": JOINT,
    "training.epochs": 2,
    "training.patience": 2,
    "training.bag_tiles": 8,
    "splits.folds": 2,
    "evaluation.bootstrap": 50,
}
#: Two rounds of five clients with three to seven training patients.
FEDERATED: dict[str, Any] = SMALL | {
    "cohorts.1.role": "develop",
    "splits.folds": 3,
    "model": CONCAT,
    "tables": TABLES,
    "training.epochs": 1,
    "training.patience": 1,
    "federation": {
        "sites": {"scheme": "iid", "clients": 5, "min_patients": 1},
        "rounds": 2,
        "min_n": 1,
        "backend": "inline",
        "local": {"epochs": 1, "optimizer": "sgd", "lr": 0.05, "batch": 4},
        "evaluation": {"plans": ["folds"], "folds": 1, "clean_costs": False},
    },
}
SEARCHED: dict[str, Any] = SMALL | {
    "search": {"trials": 4, "folds": 2, "holdout": 0.25},
    "search.space": {
        "balancing": ["equal", "uncertainty+pcgrad", "dwa"],
        "training.lr": {"loguniform": [1e-4, 1e-2]},
        "training.weight_decay": 0.01,
        "training.batch": 4,
        "training.bag_tiles": 8,
        "model.dim": 16,
        "model.encoder_layers": 1,
        "model.decoder_layers": 1,
    },
}
WEIGHTINGS = (
    "equal", "static", "uncertainty", "dwa", "auto_lambda", "rlw", "gls", "gradnorm", "imtl_l", "stch", "famo",
)  # fmt: skip
AGGREGATORS = (
    "graddrop", "pcgrad", "cagrad", "gradvac", "mgda", "imtl_g", "nash_mtl", "aligned_mtl", "db_mtl", "fairgrad",
    "excess_mtl", "upgrad", "sdmgrad",
)  # fmt: skip
STRATEGIES = (
    "fedavg", "fedavgm", "fedprox", "scaffold", "fedadam", "fedyogi", "fedadagrad", "fednova", "feddyn", "moon",
    "cyclic", "fedbn", "fedper", "ditto", "finetune", "fedbuff",
)  # fmt: skip
AGGREGATIONS = (
    "norm_clip", "median", "trimmed_mean", "geometric_median", "krum", "multi_krum", "balanced",
)  # fmt: skip
TASKS = {"MSI": 1.0, "LISS": 0.5, "LF": 0.5, "SF": 0.5, "Prolif": 0.5, "ITH": 0.5, "OS": 2.0}


@dataclass(frozen=True)
class Case:
    """One command and what is compared of what it writes.

    Parameters
    ----------
    name
        ``federation/scaffold``.
    job
        Command and its own options.
    settings
        Dotted key of the study → value.
    collect
        What is compared.
    """

    name: str
    job: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    collect: Collect = field(default=lambda run: {})

    @property
    def folder(self) -> str:
        """Name of its study and of its run folder."""
        return self.name.replace("/", "-").replace("+", "-")


def cases() -> list[Case]:
    """All cases but the preset itself."""
    return [*_runs(), *_features(), *_searches(), *_federations()]


def _runs() -> Iterable[Case]:
    def run(name: str, **settings: Any) -> Case:
        return Case(name, ("run",), SMALL | _dotted(settings), of_run)

    def balanced(weighting: str, aggregation: str = "none", **params: Any) -> Case:
        own = {"weighting": weighting, "aggregation": aggregation} | params
        return run(f"balancing/{weighting}+{aggregation}", balancing=own)

    for weighting in WEIGHTINGS:
        params = {"weighting_params": {"weights": TASKS}} if weighting == "static" else {}
        yield balanced(weighting, **params)
    for aggregation in AGGREGATORS:
        yield balanced("equal", aggregation)
    yield balanced("uncertainty", "pcgrad")
    yield balanced("dwa", "cagrad", rescale="sum_norm")
    yield balanced("imtl_l", "imtl_g")
    yield run("models/mean_pool", model={"kind": "mean_pool", "dim": 16})
    yield run("models/abmil", model={"kind": "abmil", "dim": 16, "hidden": 8, "branches": "task"})
    yield run("models/transmil", model={"kind": "transmil", "dim": 16, "heads": 2, "landmarks": 8})
    yield run("models/clinical", model={"kind": "clinical"}, tables=TABLES)
    yield run("models/omics", model={"kind": "omics", "dim": 16}, tables=TABLES)
    yield run("models/omics_linear", model={"kind": "omics", "network": "linear"}, tables=TABLES)
    yield run(
        "models/concat",
        model=CONCAT | {"modality_dropout": 0.3},
        tables=TABLES,
        balancing="uncertainty+pcgrad",
    )
    survival = {
        "name": "OS", "type": "survival", "time": {"column": "OS_DAYS", "unit": "days"},
        "event": {"column": "OS_EVENT", "event_value": "1"},
    }  # fmt: skip
    yield run(
        "tasks/hazard_and_classes",
        tasks=[
            {"name": "GRADE", "type": "multiclass", "column": "GRADE", "classes": ["G1", "G2", "G3"]},
            {"name": "HRD", "type": "binary", "column": "HRD_SCORE", "cutoff": 42, "main": True},
            survival | {"likelihood": "discrete_hazard"},
        ],
    )
    scaling = {
        "target_scaling": "standard",
        "ties": "breslow",
        "class_weights": "none",
        "monitor": "main_metric",
    }
    yield run("training/scaling", **{f"training__{key}": value for key, value in scaling.items()})
    yield run("training/two_workers", training__workers=2, balancing="uncertainty+upgrad")
    yield run("splits/site_preserved", splits={"scheme": "site_preserved", "folds": 2, "inner_val": 0.2})
    yield run("splits/monte_carlo", splits={"scheme": "monte_carlo", "repeats": 2})
    yield run(
        "splits/leave_one_cohort_out", splits={"scheme": "leave_one_cohort_out"}, cohorts__1__role="develop"
    )


def _features() -> Iterable[Case]:
    few = {"patients_per_site": 1}
    other = {"encoder": "random_conv", "mpp": 1.0, "tile_px": 128, "resample": "dct", "chunk_tiles": 8}
    yield Case(
        "features/random_conv_dct_chunks", ("extract",), few | _features_of("other", other), of_extraction
    )
    vectors = SMALL | {"features.slide_encoder": "mean_std", "model": {"kind": "mean_pool", "dim": 16}}
    yield Case("features/slide_vectors", ("run",), vectors, of_run)


def _features_of(store: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {"features.store": f"stores/{store}"} | {
        f"features.{key}": value for key, value in settings.items()
    }


def _searches() -> Iterable[Case]:
    def search(name: str, base: dict[str, Any] = SEARCHED, **settings: Any) -> Case:
        return Case(f"search/{name}", ("search", "--test"), base | _dotted(settings), of_search)

    yield search("random")
    yield search("random_two_seeds", search__seeds=2, search__trials=3)
    yield search("optuna", search__searcher="optuna", search__max_concurrent=1)
    yield search("nsga2", search__searcher="nsga2", search__max_concurrent=1)
    yield search(
        "federated",
        FEDERATED | {"search": SEARCHED["search"] | {"trials": 3}},
        search__space={
            "federation.strategy": ["fedavg", "fedprox", "fedyogi"],
            "federation.local.weight_decay": 0.01,
            "balancing": ["equal", "uncertainty+pcgrad"],
        },
    )


def _federations() -> Iterable[Case]:
    def federation(name: str, **settings: Any) -> Case:
        return Case(f"federation/{name}", ("federate",), FEDERATED | _dotted(settings), of_federation)

    for strategy in STRATEGIES:
        own: dict[str, Any] = {"federation__strategy": strategy}
        if strategy == "fedbuff":
            own |= {"federation__strategy_params": {"buffer": 2}, "federation__clock": {"speed_sd": 0.5}}
        if strategy == "fedbn":
            own |= {"model": JOINT}
        yield federation(strategy, **own)
    steps = {"steps": 3, "optimizer": "sgd", "lr": 0.05, "momentum": 0.5, "batch": 4, "schedule": "cosine"}
    yield federation("fednova_momentum", federation__strategy="fednova", federation__local=steps)
    yield federation(
        "scaffold_flamby", federation__strategy="scaffold", federation__strategy_params={"variant": "flamby"}
    )
    msi = {"name": "MSI", "type": "binary", "column": "MSI", "positive": "MSI-H", "negative": ["MSS"]}
    two = [msi, {"name": "LF", "type": "regression", "column": "LF"}]
    for aggregation in AGGREGATIONS:  # Krum wants five clients in every group of parameters
        own = {"model": JOINT, "tasks": two} if "krum" in aggregation else {}
        yield federation(f"rule_{aggregation}", federation__server_aggregation=aggregation, **own)
    yield federation("rule_mean_max_share", federation__server_aggregation_params={"max_share": 0.3})
    yield federation(
        "rule_balanced_mgda",
        federation__server_aggregation="balanced",
        federation__server_aggregation_params={"aggregator": "mgda"},
    )

    secure, no_bound = {"secure_aggregation": {}}, {"norm_factor": None}
    clients = {"client_level": {"clip": 0.5, "noise": 1.0, "delta": 0.01}, "statistics": "public"}
    poisson = {"weights": "uniform", "participation": {"scheme": "poisson", "fraction": 0.8}}
    drawn = {f"federation__{key}": value for key, value in (poisson | {"validation": no_bound}).items()}
    yield federation("secure_aggregation", federation__privacy=secure, federation__validation=no_bound)
    yield federation("client_level", federation__privacy=clients, **drawn)
    yield federation("secure_client_level", federation__privacy=secure | clients, **drawn)
    patients = {"record_level": {"clip": 1.0, "noise": 1.0, "delta": 0.05}, "statistics": "public"}
    yield federation("record_level", federation__privacy=patients, tasks=two)

    yield federation("balancing", balancing="uncertainty+pcgrad", model=JOINT)
    yield federation("balancing_validation", balancing="auto_lambda", federation__sites={"scheme": "cohort"})
    yield federation(
        "participation",
        federation__participation={"scheme": "uniform", "fraction": 0.6},
        federation__clock={"speed_sd": 0.5, "jitter_sd": 0.2, "deadline": 1.5, "failures": 0.2},
        federation__rounds=3,
    )
    yield federation("ray", federation__backend="ray", federation__workers=2, federation__strategy="scaffold")
    yield federation("costs_of_rules", federation__evaluation__clean_costs=True)
    yield federation(
        "sites_left_out",
        federation__sites={"scheme": "dirichlet", "clients": 3, "min_patients": 1},
        federation__evaluation={"plans": ["folds", "leave_one_site_out"], "folds": 1, "clean_costs": False},
    )
    yield federation(
        "tss", federation__sites={"scheme": "tss", "min_patients": 8}, model={"kind": "omics", "dim": 16}
    )


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in settings.items()}

"""Clients of a federation: every scheme partitions the development patients, and no patient has two owners."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from equipoise.datasets.tables.tasks import BinaryTask
from equipoise.platform.errors import DataError
from equipoise.platform.federation.params import ClientScheme, PlanParams
from equipoise.platform.federation.simulation.sites import (
    assign_clients,
    check_no_overlap,
    guard_institutions,
    guard_patients,
    institutions_of,
    patient_hash,
)

TASKS = (BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS"),)
TABLE = "TSS Code,Source Site,Region\nAA,Indivumed,Europe\nNA,Duke University,South\nBB,Mayo,Midwest\nCC,Mayo,Midwest\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "tss.csv").write_text(TABLE)
    return tmp_path


def patients(**codes: int) -> pd.DataFrame:
    """TCGA-like patients of each code; every fourth has the marker."""
    keys = [f"TCGA-{code}-{i:04d}" for code, n in codes.items() for i in range(n)]
    return table(keys, "TCGA-CRC")


def table(keys: list[str], cohort: str, role: str = "develop") -> pd.DataFrame:
    frame = pd.DataFrame({"patient": keys, "cohort": cohort, "role": role, "site": cohort})
    return frame.assign(MSI=[float(i % 4 == 0) for i in range(len(keys))])


def patients_by_client(
    frame: pd.DataFrame, base: Path, seed: int = 0, **scheme: object
) -> dict[str, tuple[str, ...]]:
    clients, _ = assign_clients(frame, ClientScheme.model_validate(scheme), TASKS, base=base, seed=seed)
    return {client.name: client.patients for client in clients}


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.sampled_from(["tss", "institution", "region", "iid", "dirichlet", "cohort", "site"]),
    st.integers(1, 30),
)
def test_schemes_partition_the_development_patients(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], scheme: str, least: int
) -> None:
    base = tmp_path_factory.mktemp("sites")
    (base / "tss.csv").write_text(TABLE)
    frame = patients(**dict(zip(("AA", "NA", "BB", "CC"), sizes, strict=False)))
    others = [table([f"C3L-{i}" for i in range(5)], "CPTAC"), table(["X1", "X2"], "EXT", "external")]
    frame = pd.concat([frame, *others], ignore_index=True)
    wanted = {"scheme": scheme, "table": "tss.csv", "min_patients": least, "clients": 3}
    try:
        clients = patients_by_client(frame, base, **wanted)
    except DataError as error:
        if "makes 1 client" not in str(error):
            raise
        return
    everyone = [patient for members in clients.values() for patient in members]
    assert sorted(everyone) == sorted(frame.loc[frame["role"] == "develop", "patient"])
    shuffled = frame.sample(frac=1, random_state=1)
    assert patients_by_client(shuffled, base, **wanted) == clients


def test_codes_are_text_and_institutions_own_several(base: Path) -> None:
    frame = patients(AA=25, NA=25, BB=15, CC=15, ZZ=21)
    clients = patients_by_client(frame, base, scheme="institution", table="tss.csv")
    assert {name: len(members) for name, members in clients.items()} == {
        "Indivumed": 25,
        "Duke University": 25,
        "Mayo": 30,
        "ZZ": 21,
    }
    assert {n: len(m) for n, m in patients_by_client(frame, base, scheme="tss").items()} == {
        "AA": 25,
        "NA": 25,
        "ZZ": 21,
        "other": 30,
    }


def test_small_sites_go_to_their_region_or_together(base: Path) -> None:
    frame = patients(AA=25, NA=5, BB=15, CC=15, ZZ=3)
    wanted = ClientScheme(scheme="tss", table="tss.csv", merge="region")
    clients, notes = assign_clients(frame, wanted, TASKS, base=base, seed=0)
    assert {c.name: (len(c.patients), c.sites) for c in clients} == {
        "AA": (25, ("AA",)),
        "Midwest": (30, ("BB", "CC")),
        "other": (8, ("NA", "ZZ")),
    }
    assert any("other (8)" in note for note in notes)


def test_keys_without_a_code_are_one_client_a_cohort(base: Path) -> None:
    frame = pd.concat([patients(AA=25, BB=25), table([f"C3L-{i:05d}" for i in range(22)], "CPTAC-COAD")])
    clients, notes = assign_clients(frame, ClientScheme(scheme="tss"), TASKS, base=base, seed=0)
    assert [c.name for c in clients] == ["AA", "BB", "CPTAC-COAD"]
    assert any("22 keys carry no site code" in note for note in notes)


def test_controls_are_seeded_and_dirichlet_is_skewed(base: Path) -> None:
    frame = patients(AA=200, BB=200)
    assert patients_by_client(frame, base, scheme="iid", seed=1) == patients_by_client(
        frame, base, scheme="iid", seed=1
    )
    assert patients_by_client(frame, base, scheme="iid", seed=1) != patients_by_client(
        frame, base, scheme="iid", seed=2
    )
    assert {len(m) for m in patients_by_client(frame, base, scheme="iid").values()} == {66, 67}
    marker = frame.set_index("patient")["MSI"]

    def spread(alpha: float) -> float:
        clients = patients_by_client(frame, base, scheme="dirichlet", alpha=alpha, clients=4, seed=3)
        return float(np.std([marker[list(members)].mean() for members in clients.values()]))

    assert spread(0.3) > 3 * spread(1000)


def test_a_patient_on_two_sides_is_named() -> None:
    assert patient_hash("TCGA-AA-3660-01Z") == patient_hash(" tcga-aa-3660") != patient_hash("TCGA-AA-3661")
    guard_patients({"client A": ["TCGA-AA-3660"], "test": ["TCGA-AA-3661"]})
    with pytest.raises(DataError, match=r"client A and external cohort E share 1: tcga-aa-3660"):
        guard_patients({"client A": ["TCGA-AA-3660"], "external cohort E": ["tcga-aa-3660 "]})


def test_an_institution_on_two_sides_is_refused_where_asked(base: Path) -> None:
    frame = patients(BB=25, AA=25)
    external = {"E": ["TCGA-CC-0001"]}
    for guard, refused in (("patients", False), ("institutions", True)):
        scheme = ClientScheme(scheme="institution", table="tss.csv", guard=guard)
        clients, _ = assign_clients(frame, scheme, TASKS, base=base, seed=0)
        if refused:
            with pytest.raises(DataError, match="client Mayo and external cohort E share 1: Mayo"):
                check_no_overlap(clients, external, scheme, base)
        else:
            check_no_overlap(clients, external, scheme, base)
    assert institutions_of(["TCGA-NA-0001", "C3L-1"], scheme, base) == {"Duke University"}
    guard_institutions({"client A": {"Mayo"}, "client B": {"Duke University"}})


def test_settings_say_what_they_need() -> None:
    with pytest.raises(ValidationError, match="institution needs a table"):
        ClientScheme.model_validate("institution")
    with pytest.raises(ValidationError, match="no small sites to merge"):
        ClientScheme(scheme="iid", merge="region", table="t.csv")
    with pytest.raises(ValidationError, match="names a plan twice"):
        PlanParams(plans=["folds", "folds"])
    assert ClientScheme.model_validate("cohort").min_patients == 20


@pytest.mark.real
def test_real_institutions_of_gliomas(shared_data: Path) -> None:
    listed = pd.read_csv(
        shared_data / "tcga" / "porpoise" / "tcga_gbmlgg_all_clean.csv.zip", usecols=["case_id"]
    )
    frame = table(sorted(set(listed["case_id"])), "GBMLGG")
    scheme = ClientScheme(scheme="institution", table="fed/tcga_tss/tissueSourceSite.tsv")
    clients, _ = assign_clients(frame, scheme, TASKS, base=shared_data, seed=0)
    sizes = {client.name: len(client.patients) for client in clients}
    assert sum(sizes.values()) == len(frame)
    assert "other" in sizes
    assert all(size >= 20 for name, size in sizes.items() if name != "other")
    assert any(len(client.sites) > 3 for client in clients if client.name == "other")

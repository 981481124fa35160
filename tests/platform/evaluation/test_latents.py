"""The latents table: round trip, bytes, refusals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.latents import (
    EXTERNAL_LATENTS,
    FOLD_LATENTS,
    LATENT_COLUMNS,
    read_fold_latents,
    read_latents,
    write_latents,
)


def table(role: str = "test", fold: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(fold)
    rows = [
        (f"p{i}", 0, fold, role, task, rng.normal(size=width).astype(np.float32))
        for task, width in (("MSI", 3), ("LISS", 5))
        for i in range(4)
    ]
    return pd.DataFrame(rows, columns=list(LATENT_COLUMNS))


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    written = table()
    back = read_latents(write_latents(written, tmp_path / FOLD_LATENTS))
    expected = written.sort_values(["task", "role", "patient"], ignore_index=True)
    assert len(LATENT_COLUMNS[:-1]) > 0
    for column in LATENT_COLUMNS[:-1]:
        assert back[column].tolist() == expected[column].tolist()
    for one, other in zip(back["latent"], expected["latent"], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    one = write_latents(table(), tmp_path / "one.parquet").read_bytes()
    other = write_latents(table().sample(frac=1, random_state=1), tmp_path / "other.parquet").read_bytes()
    assert one == other


def test_no_row_is_a_table_too(tmp_path: Path) -> None:
    empty = pd.DataFrame(columns=list(LATENT_COLUMNS))
    assert read_latents(write_latents(empty, tmp_path / FOLD_LATENTS)).empty


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_latents(tmp_path / "absent.parquet")
    table()[["patient"]].to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="not a latents table"):
        read_latents(tmp_path / "other.parquet")
    broken = table()
    broken.at[2, "latent"] = np.array([1, np.nan, 0], np.float32)
    with pytest.raises(DataError, match="'p2' is not finite"):
        write_latents(broken, tmp_path / FOLD_LATENTS)


def test_folds_together_or_not_at_all(tmp_path: Path) -> None:
    folders = [tmp_path / "0-0", tmp_path / "0-1"]
    for k, folder in enumerate(folders):
        folder.mkdir()
        write_latents(table(fold=k), folder / FOLD_LATENTS)
    write_latents(table("external", 1), folders[1] / EXTERNAL_LATENTS)
    together = read_fold_latents(folders)
    assert together is not None
    assert len(together) == 3 * 8
    assert set(together["role"]) == {"test", "external"}
    (folders[0] / FOLD_LATENTS).unlink()
    assert read_fold_latents(folders) is None

"""Profiles through an encoder: once each, the same on Ray and in this process, kept by content."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.params import RnaEncoderSource
from equipoise.models.rna import pca
from equipoise.models.rna.pca import PcaEncoder, fit_components
from equipoise.platform.errors import ResourceError
from equipoise.platform.extraction import rna_vectors
from equipoise.platform.extraction.rna_encoders import identify_rna_encoder
from equipoise.platform.extraction.rna_vectors import BLOCK, Profiles, RnaStages, encode_profiles, rna_store

GENES = tuple(f"G{i}" for i in range(9))


def profiles(n: int, seed: int = 0) -> Profiles:
    values = np.random.default_rng(seed).poisson(30.0, (n, 9)).astype(np.float32)
    return Profiles(values, GENES, "counts")


@pytest.fixture
def source(tmp_path: Path) -> RnaEncoderSource:
    fit_components(profiles(30, 9).values, GENES, kind="counts", components=3).save(tmp_path / "encoder")
    return RnaEncoderSource.model_validate({"name": "pca", "folder": "encoder"})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of samples that the encoder got, call by call."""
    numbers: list[int] = []
    encode = PcaEncoder.encode

    def counting(self: PcaEncoder, values: np.ndarray, *args: object, **named: object) -> np.ndarray:
        numbers.append(len(values))
        return encode(self, values, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(PcaEncoder, "encode", counting)
    return numbers


def test_every_profile_is_encoded_once(source: RnaEncoderSource, tmp_path: Path, calls: list[int]) -> None:
    store = rna_store(source, identify_rna_encoder(source, tmp_path), tmp_path / "features")
    samples = profiles(BLOCK + 8)
    twice = Profiles(np.concatenate([samples.values, samples.values[:5]]), GENES, "counts")
    vectors = encode_profiles(twice, source, tmp_path, store=store)
    assert calls == [BLOCK, 8]
    direct = PcaEncoder(pca.PcaParams(folder=str(tmp_path / "encoder")))
    np.testing.assert_allclose(vectors, direct.encode(twice.values, GENES, kind="counts"), atol=1e-6)
    calls.clear()
    np.testing.assert_array_equal(encode_profiles(twice, source, tmp_path, store=store), vectors)
    assert calls == []
    grown = Profiles(np.concatenate([profiles(2, 1).values, samples.values]), GENES, "counts")
    np.testing.assert_array_equal(encode_profiles(grown, source, tmp_path, store=store)[2:], vectors[:-5])
    assert calls == [2]


def test_an_interrupted_run_keeps_its_blocks(
    source: RnaEncoderSource, tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = rna_store(source, identify_rna_encoder(source, tmp_path), tmp_path / "features")
    samples = profiles(3 * BLOCK)
    encode = PcaEncoder.encode

    def dying(self: PcaEncoder, *args: object, **named: object) -> np.ndarray:
        if len(calls) == 1:
            raise KeyboardInterrupt
        return encode(self, *args, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(PcaEncoder, "encode", dying)
        with pytest.raises(KeyboardInterrupt):
            encode_profiles(samples, source, tmp_path, store=store)
    assert calls == [BLOCK]
    resumed = encode_profiles(samples, source, tmp_path, store=store)
    assert calls == [BLOCK] * 3
    np.testing.assert_array_equal(resumed, encode_profiles(samples, source, tmp_path))


def test_keys_follow_values_genes_and_kind() -> None:
    samples = profiles(2)
    others = [
        Profiles(samples.values + 1, GENES, "counts"),
        Profiles(samples.values, GENES, "tpm"),
        Profiles(samples.values, (*GENES[:8], "H"), "counts"),
    ]
    assert len({samples.keys()[0], samples.keys()[1], *(other.keys()[0] for other in others)}) == 5
    assert samples.keys() == profiles(2).keys()


def test_the_store_follows_encoder_and_seed(source: RnaEncoderSource, tmp_path: Path) -> None:
    identity = identify_rna_encoder(source, tmp_path)
    first = rna_store(source, identity, tmp_path)
    other_seed = rna_store(source.model_copy(update={"seed": 1}), identity, tmp_path)
    fit_components(profiles(30, 8).values, GENES, kind="counts", components=3).save(tmp_path / "second")
    second = RnaEncoderSource.model_validate({"name": "pca", "params": {"folder": "second"}})
    other_weights = rna_store(second, identify_rna_encoder(second, tmp_path), tmp_path)
    assert len({first.address, other_seed.address, other_weights.address}) == 3
    assert Path(first.address).parent == tmp_path / "rna"


def test_refusals_name_key_and_remedy(source: RnaEncoderSource, tmp_path: Path) -> None:
    scores = Profiles(profiles(2).values - 30, GENES, "zscore")
    with pytest.raises(DataError, match=r"'pca' cannot use z-scores") as refused:
        encode_profiles(scores, source, tmp_path)
    assert refused.value.where == "tables.rna.encoder"
    assert "before it was standardised" in str(refused.value.fix)
    with pytest.raises(DataError, match="none of the 2 genes is in the reference"):
        encode_profiles(Profiles(np.ones((1, 2), np.float32), ("x", "y"), "tpm"), source, tmp_path)
    nowhere = RnaEncoderSource.model_validate({"name": "pca", "folder": "nowhere"})
    with pytest.raises(ResourceError, match=r"there is no folder .*nowhere"):
        encode_profiles(profiles(1), nowhere, tmp_path)


def test_a_worker_with_another_encoder_refuses_to_work(source: RnaEncoderSource, tmp_path: Path) -> None:
    identity = identify_rna_encoder(source, tmp_path)
    other = type(identity)(identity.dim, "0" * 64)
    with pytest.raises(ResourceError, match="another RNA encoder 'pca' than the driver"):
        RnaStages(source, tmp_path, other).encoder()


@pytest.mark.cluster
def test_ray_gives_the_same_vectors(
    ray_session: None, source: RnaEncoderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = profiles(2 * BLOCK + 3)
    samples.values[4] = 0
    expected = encode_profiles(samples, source, tmp_path)
    monkeypatch.setattr(pca.PcaParams, "in_process", False)
    opened = []

    @contextmanager
    def session() -> Iterator[None]:
        opened.append(True)
        yield

    store = rna_store(source, identify_rna_encoder(source, tmp_path), tmp_path / "features")
    vectors = encode_profiles(samples, source, tmp_path, workers=1, session=session, store=store)
    np.testing.assert_array_equal(vectors, expected)
    assert np.isnan(vectors[4]).all()
    encode_profiles(samples, source, tmp_path, workers=1, session=session, store=store)
    assert opened == [True]
    assert rna_vectors.BLOCK == BLOCK

"""Text encoders: length 1, what the embedded one can and cannot, one encoding per sentence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from equipoise.models.text.entries import HashedParams, TransformersParams
from equipoise.models.text.hashed import HashedEncoder
from equipoise.models.text.protocol import encode_once


def cosines(*sentences: str) -> np.ndarray:
    rows = HashedEncoder(HashedParams()).encode(sentences)
    return rows @ rows.T


def test_rows_have_length_1_and_do_not_depend_on_the_others() -> None:
    encoder = HashedEncoder(HashedParams())
    both = encoder.encode(["diagnosis: glioblastoma", "overall stage: stage two"])
    assert both.shape == (2, encoder.dim)
    assert both.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(both[1], encoder.encode(["overall stage: stage two"])[0])


@pytest.mark.parametrize(
    "family",
    [
        [f"overall stage: stage {n}" for n in ("one", "two", "three", "four")],
        [f"overall stage: stage {n}" for n in ("I", "II", "III", "IV")],
        [f"died before {n} months" for n in (3, 11, 52, 282)],
    ],
)
def test_numbers_lie_in_their_order(family: list[str]) -> None:
    near = cosines(*family)
    assert near[0, 1] > near[0, 2] > near[0, 3]
    assert near[3, 2] > near[3, 1] > near[3, 0]


def test_shared_words_are_near_and_synonyms_are_not() -> None:
    near = cosines("renal cell carcinoma, papillary", "renal cell carcinoma, clear", "kidney tumour")
    assert near[0, 1] > 0.5
    assert abs(near[0, 2]) < 0.2


def test_a_sentence_is_encoded_once() -> None:
    class Counting:
        dim, fingerprint, seen = 2, "counting", 0

        def encode(self, sentences: Sequence[str]) -> np.ndarray:
            self.seen += len(sentences)
            return np.array([[1.0, 0.0]] * len(sentences), np.float32)

    encoder = Counting()
    assert encode_once(encoder, ["a", "b", "a"]).shape == (3, 2)
    encode_once(encoder, ["b", "c"])
    assert encoder.seen == 3


def test_rows_of_another_length_are_refused() -> None:
    class Long:
        dim, fingerprint = 2, "long"

        def encode(self, sentences: Sequence[str]) -> np.ndarray:
            return np.ones((len(sentences), 2), np.float32)

    with pytest.raises(ValueError, match="length 1"):
        encode_once(Long(), ["a"])


def test_a_missing_model_says_what_to_do(tmp_path: Path) -> None:
    from equipoise.models.text.pretrained import TransformersEncoder

    with pytest.raises(ValueError, match=r"no model in|pip install -e '\.\[text\]'"):
        TransformersEncoder(TransformersParams(path=str(tmp_path)))


def test_a_model_of_a_folder_equals_mean_pooling_by_hand(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    from equipoise.models.text.pretrained import TransformersEncoder

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "breast", "lobular", "carcinoma"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = transformers.BertModel(config).eval()
    model.save_pretrained(tmp_path)
    encoder = TransformersEncoder(TransformersParams(path=str(tmp_path)))
    rows = encoder.encode(["breast", "lobular carcinoma breast"])
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([[2, 5, 3]])).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(rows[0], (alone / alone.norm()).numpy(), atol=1e-5)
    before = encoder.fingerprint
    torch.nn.init.ones_(model.pooler.dense.bias)
    model.save_pretrained(tmp_path)
    assert TransformersEncoder(TransformersParams(path=str(tmp_path))).fingerprint != before

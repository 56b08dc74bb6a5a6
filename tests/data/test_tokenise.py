"""Documents encoded together are what each part by itself gives."""

import random

import numpy as np
import pytest

from rwkv.data.records import Part
from rwkv.data.tokenise import encoded, why_dropped
from rwkv.data.tokenizer import build
from tests.data.sourcing import data_of
from tests.data.test_huggingface import byte_level

WORDS = [b"a", b"the ", b"<end>", "天é".encode(), b"\r\n\n", b"  ", b"\0\xff", b""]


def one_by_one(record: list[Part], tokenizer, untrained: int) -> tuple[list[int], list[bool]]:
    """(ids, mask) of a document, by the definition."""
    ids, mask = [], []
    for part in record:
        own = tokenizer.encode(part.text).tolist()
        ids, mask = ids + own, mask + [part.trained] * len(own)
    ids, mask = [*ids, 0], [*mask, record[-1].trained]
    return ids, [i >= untrained and trained for i, trained in enumerate(mask)]


def random_record(rng: random.Random, masked: bool) -> list[Part]:
    texts = (b"".join(rng.choices(WORDS, k=rng.randint(0, 12))) for _ in range(rng.randint(1, 4)))
    return [Part(text, not masked or rng.random() < 0.5) for text in texts]


@pytest.mark.parametrize("untrained", [0, 3])
@pytest.mark.parametrize("kind", ["bytes", "world", "hf"])
def test_a_batch_is_its_documents(kind, untrained, tmp_path):
    tok = build(kind, byte_level(tmp_path / "t.json", "<end>") if kind == "hf" else None)
    rng = random.Random(0)
    for masked in (False, True):
        records = [random_record(rng, masked) for _ in range(300)]
        docs = encoded(records, tok, untrained)
        wanted = [one_by_one(record, tok, untrained) for record in records]
        assert docs.sizes.tolist() == [len(ids) for ids, _ in wanted]
        assert docs.ids.tolist() == [i for ids, _ in wanted for i in ids]
        assert (docs.mask is None) == (not masked and not untrained)
        if docs.mask is not None:
            assert docs.mask.tolist() == [x for _, mask in wanted for x in mask]
        assert docs.learnable.tolist() == [any(mask[1:]) for _, mask in wanted]
        some = np.array([rng.random() < 0.5 for _ in records])
        kept = docs.those(some)
        assert kept.ids.tolist() == [i for (ids, _), keep in zip(wanted, some, strict=True) if keep for i in ids]


def test_a_document_is_dropped_for_one_reason():
    tok = build("bytes", None)
    docs = encoded([[Part(b"x" * n, n % 2 == 0)] for n in (0, 1, 2, 3, 9, 10, 11)], tok)
    why = why_dropped(docs, data_of("data.min_tokens=3", "data.max_tokens=10"))
    assert {reason: np.flatnonzero(which).tolist() for reason, which in why.items()} == {
        "shorter than min_tokens=3": [0, 1],
        "longer than max_tokens=10": [5, 6],
        "nothing trained": [3, 4],
    }

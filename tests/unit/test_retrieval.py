"""Cross-modal recall: worked examples, chance, and an honest treatment of ties."""

from __future__ import annotations

import numpy as np
import pytest

from astroclip_dist.evaluate import retrieval
from astroclip_dist.evaluate.retrieval import cross_modal_recall, partner_ranks


def unit(n: int, d: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_aligned_embeddings_are_found() -> None:
    vectors = unit(300, 16, 0)
    result = cross_modal_recall(vectors, vectors)
    assert result.recall == {1: 1.0, 10: 1.0}
    assert result.median_rank == 1
    assert result.candidates == 300


def test_a_worked_example() -> None:
    angles = np.deg2rad([0, 10, 50])
    partners = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    turned = np.deg2rad([9, 12, 14])
    queries = np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)
    # 9 deg is nearest to 10, then 0; 12 to 10; 14 to 10, then 0, then 50
    assert list(partner_ranks(queries, partners)) == [2, 1, 3]
    assert cross_modal_recall(queries, partners, ks=(1, 2)).recall == pytest.approx({1: 1 / 3, 2: 2 / 3})


def test_unrelated_embeddings_stand_at_chance() -> None:
    result = cross_modal_recall(unit(2000, 16, 0), unit(2000, 16, 1), ks=(1, 100))
    assert result.chance == {1: 1 / 2000, 100: 0.05}
    assert result.recall[100] == pytest.approx(0.05, abs=0.02)
    assert result.median_rank == pytest.approx(1000, rel=0.1)


def test_collapsed_embeddings_do_not_look_like_success() -> None:
    same = np.repeat(unit(1, 16, 0), 50, axis=0)
    assert cross_modal_recall(same, same).recall == {1: 0.0, 10: 0.0}


def test_ranks_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, partners = unit(101, 4, 0), unit(101, 4, 1)
    whole = partner_ranks(queries, partners)
    monkeypatch.setattr(retrieval, "_CHUNK", 10)
    np.testing.assert_array_equal(partner_ranks(queries, partners), whole)

"""Reading embeddings and searching them."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from astroclip_dist.embed import search
from astroclip_dist.embed.command import add_parser
from astroclip_dist.embed.search import find_vector, nearest, top_k
from astroclip_dist.embed.table import EmbeddingFolder, EmbeddingTable
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.store import Store
from tests.unit.embedded_galaxies import write_embeddings

N, D = 250, 8


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    vectors = rng.normal(size=(n, D))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    found = {"image": unit(rng, N), "spectrum": unit(rng, N)}
    found["spectrum"][7] = np.nan
    return found


@pytest.fixture
def url(tmp_path: Path, vectors: dict[str, np.ndarray]) -> str:
    rows = [
        {"key": f"k{i}", "split": "test", "dataset": 0, "shard": "test-000000", "row": i, "redshift": i / N}
        | ({"only_some": 1.5} if i >= 200 else {})
        for i in range(N)
    ]
    return write_embeddings(tmp_path / "embeddings", rows, vectors)


def test_the_table_is_what_was_written(url: str, vectors: dict[str, np.ndarray]) -> None:
    table = EmbeddingTable.read(url)
    assert len(table) == N
    np.testing.assert_array_equal(table.embeddings["image"], vectors["image"])
    np.testing.assert_array_equal(table.embeddings["spectrum"], vectors["spectrum"])
    assert list(np.flatnonzero(~table.has("spectrum"))) == [7]
    np.testing.assert_allclose(table.numbers("redshift"), np.arange(N) / N)
    np.testing.assert_array_equal(np.isnan(table.numbers("only_some")), np.arange(N) < 200)
    assert list(table.strings("key")[:3]) == ["k0", "k1", "k2"]
    with pytest.raises(DataError, match="mass"):
        table.numbers("mass")
    with pytest.raises(DataError, match="not a number"):
        table.numbers("key")


def break_manifest(store: Store, **changes: object) -> None:
    store.put("manifest.json", json.dumps(json.loads(store.read("manifest.json")) | changes).encode())


def test_damage_is_named(url: str) -> None:
    store = Store(url)
    part = store.read("part-00001.parquet")
    store.put("part-00001.parquet", part[:-100] + bytes(100))
    with pytest.raises(DataError, match=r"part-00001.*damaged"):
        EmbeddingTable.read(url)
    store.delete(["part-00001.parquet"])
    with pytest.raises(DataError, match=r"part-00001.*missing"):
        EmbeddingTable.read(url)
    store.put("part-00001.parquet", part)
    break_manifest(store, rows=N + 1)
    with pytest.raises(DataError, match="rows"):
        EmbeddingTable.read(url)
    break_manifest(store, rows=N, sizes={"image": D + 1, "spectrum": D})
    with pytest.raises(DataError, match=r"image_embedding.*lists of 8 values.*Expected are 9"):
        EmbeddingTable.read(url)
    break_manifest(store, schema_version=1)
    with pytest.raises(DataError, match="schema_version"):
        EmbeddingTable.read(url)
    store.delete(["manifest.json"])
    with pytest.raises(DataError, match="export that has not ended"):
        EmbeddingTable.read(url)


def test_a_lost_row_is_noticed_even_if_hash_and_manifest_agree(url: str, tmp_path: Path) -> None:
    store = Store(url)
    path = tmp_path / "embeddings" / "part-00002.parquet"
    pq.write_table(pq.read_table(path)[:-1], path)
    manifest = json.loads(store.read("manifest.json"))
    manifest["parts"][2]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    store.put("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(DataError, match="49 rows; the manifest says 50"):
        EmbeddingTable.read(url)


@pytest.mark.parametrize("k", [1, 5, 400])
def test_top_k_equals_a_full_sort_whatever_the_chunks(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "QUERY_ROWS", 7)
    monkeypatch.setattr(search, "GALLERY_ROWS", 37)
    rng = np.random.default_rng(0)
    queries, gallery = unit(rng, 20), unit(rng, 300)
    gallery[5] = np.nan
    scores, rows = top_k(torch.from_numpy(queries), torch.from_numpy(gallery), k)
    product = queries.astype(np.float64) @ np.nan_to_num(gallery.astype(np.float64)).T
    product[:, 5] = -np.inf
    expected = np.argsort(-product, axis=1)[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(product, expected, 1), atol=1e-6)


def test_search_over_parts_equals_search_in_memory(url: str, vectors: dict[str, np.ndarray]) -> None:
    folder = EmbeddingFolder(url)
    for asked in ("image", "spectrum"):
        for among in ("image", "spectrum"):
            found = nearest(folder, find_vector(folder, "k123", asked), among, 9, leave_out="k123")  # type: ignore[arg-type]
            cosines = vectors[among] @ vectors[asked][123]
            cosines[123] = np.nan
            expected = np.argsort(-np.nan_to_num(cosines, nan=-2))[:9]
            assert [neighbour.galaxy["row"] for neighbour in found] == list(expected)
            np.testing.assert_allclose([neighbour.cosine for neighbour in found], cosines[expected], atol=1e-6)
            assert "image_embedding" not in found[0].galaxy


def test_wrong_questions_are_named(url: str) -> None:
    folder = EmbeddingFolder(url)
    with pytest.raises(DataError, match="galaxy nobody"):
        find_vector(folder, "nobody", "image")
    with pytest.raises(DataError, match="galaxy k7: has no spectrum"):
        find_vector(folder, "k7", "spectrum")
    with pytest.raises(ConfigError, match="query vector"):
        nearest(folder, np.ones(D + 1), "image", 3)
    with pytest.raises(ConfigError, match="query vector"):
        nearest(folder, np.zeros(D), "image", 3)
    with pytest.raises(ConfigError, match="k"):
        nearest(folder, np.ones(D), "image", 0)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["search", *arguments])
    code: int = args.run(args)
    return code


def test_command(url: str, vectors: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(url, "--key", "k3", "--query", "image", "--among", "spectrum", "-k", "4", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert [galaxy["row"] for galaxy in answer] == list(
        np.argsort(-np.nan_to_num(vectors["spectrum"] @ vectors["image"][3], nan=-2))[:4]
    )
    assert run(url, "--key", "k3", "-k", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert "k3 " not in "\n".join(lines)
    np.save(tmp_path / "query.npy", 5 * vectors["image"][3])
    assert run(url, "--vector", str(tmp_path / "query.npy"), "-k", "1") == 0
    assert "1.0000  k3 " in capsys.readouterr().out
    (tmp_path / "query.npy").write_text("no array")
    with pytest.raises(ConfigError, match="--vector"):
        run(url, "--vector", str(tmp_path / "query.npy"))

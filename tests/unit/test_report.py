"""The evaluation from end to end on small galaxies, and what the report says in words."""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from astroclip_dist.embed.table import EmbeddingTable
from astroclip_dist.errors import DataError
from astroclip_dist.evaluate.command import add_parser
from astroclip_dist.evaluate.held_out import hold_out
from astroclip_dist.evaluate.metrics import RedshiftQuality
from astroclip_dist.evaluate.panels import choose_queries, retrieve, with_all_modalities
from astroclip_dist.evaluate.redshift import RedshiftResult
from astroclip_dist.evaluate.report import evaluate
from astroclip_dist.evaluate.retrieval import CrossModalRecall
from astroclip_dist.evaluate.verdict import write_verdict
from astroclip_dist.store import Store
from astroclip_dist.train.tracking import Tracker
from tests.unit.embedded_galaxies import redshift_vectors, write_dataset, write_embeddings

Rows = list[dict[str, object]]


class Page(HTMLParser):
    """Counts what a page holds and notes what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.loads: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and value is not None:
                (self.images if value.startswith("data:image/png;base64,") else self.loads).append(value)

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2" and data.strip():
            self.headings.append(data)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Rows]:
    url = str(tmp_path_factory.mktemp("galaxies") / "data")
    return url, write_dataset(url, 300)


def vectors(rows: Rows) -> dict[str, np.ndarray]:
    redshift = np.array([row["redshift"] for row in rows], float)
    return {"image": redshift_vectors(redshift, 1.5, seed=1), "spectrum": redshift_vectors(redshift, 0.1, seed=2)}


@pytest.fixture
def embeddings(dataset: tuple[str, Rows], tmp_path: Path) -> str:
    url, rows = dataset
    return write_embeddings(tmp_path / "embeddings", rows, vectors(rows), [url])


def test_the_whole_report(embeddings: str, dataset: tuple[str, Rows], tmp_path: Path) -> None:
    run = Store(tmp_path / "run")
    tracker = Tracker.open(run, f"sqlite:///{tmp_path}/mlflow.db", "report", "x")
    for step in range(100):
        tracker.log_metrics(step, {"loss": 4 / (step + 1)})
    assert tracker.close() == 0
    results = evaluate(embeddings, tmp_path / "out" / "report.html", run.url)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert page.loads == [], "the page must need no other file"
    assert page.headings == [
        "Nearest neighbours",
        "Redshift",
        "Retrieval across modalities",
        "Map of the embeddings",
        "Training loss",
        "Lineage",
    ]
    assert len(page.images) == 4 + 3
    for image in page.images:
        picture = Image.open(io.BytesIO(base64.b64decode(image.split(",")[1])))
        assert len(picture.convert("L").getcolors(1 << 20) or []) > 20, "an empty picture"
    methods = results["redshift"]["methods"]
    assert methods["spectrum"]["r2"] > methods["magnitudes"]["r2"] > methods["image"]["r2"]
    assert f"{methods['image']['r2']:.3f}" in text
    assert results["verdict"] in text
    assert "Image embeddings" in results["verdict"]
    assert "they do not reach the g, r, z magnitudes" in results["verdict"]
    assert results["notes"] == []
    assert results["galaxies"]["neighbours"] + results["galaxies"]["held_out"] == len(dataset[1])
    assert results["lineage"]["datasets"][0]["source"]["name"] == "drawn"
    assert results["lineage"]["checkpoint"] in text
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix not in (".html", ".json")] == []


def test_one_split_is_named(dataset: tuple[str, Rows], tmp_path: Path) -> None:
    url, rows = dataset
    one_split: Rows = [row | {"split": "train"} for row in rows]
    results = evaluate(write_embeddings(tmp_path / "e", one_split, vectors(rows), [url]), tmp_path / "report.html")
    assert "one split (train)" in results["verdict"]
    assert "methods" in results["redshift"]


def test_one_modality_without_redshift_or_magnitudes(dataset: tuple[str, Rows], tmp_path: Path) -> None:
    url, rows = dataset
    places = ("key", "split", "dataset", "shard", "row")
    bare: Rows = [{name: row[name] for name in places} for row in rows]
    folder = write_embeddings(tmp_path / "e", bare, {"image": vectors(rows)["image"]}, [url])
    results = evaluate(folder, tmp_path / "report.html")
    assert "no redshift" in results["verdict"]
    assert "no galaxies with both modalities" in results["verdict"]
    assert results["cross_modal"] == {}
    assert Page((tmp_path / "report.html").read_text()).headings[:2] == ["Nearest neighbours", "Redshift"]


def test_no_baseline_is_said(dataset: tuple[str, Rows], tmp_path: Path) -> None:
    url, rows = dataset
    without: Rows = [{name: value for name, value in row.items() if not name.startswith("mag_")} for row in rows]
    results = evaluate(write_embeddings(tmp_path / "e", without, vectors(rows), [url]), tmp_path / "report.html")
    assert set(results["redshift"]["methods"]) == {"image", "spectrum"}
    assert "no baseline" in results["verdict"]


def test_absent_values_are_left_out_for_all_methods_alike(dataset: tuple[str, Rows], tmp_path: Path) -> None:
    url, rows = dataset
    holes = vectors(rows)
    test = [number for number, row in enumerate(rows) if row["split"] == "test"]
    holes["spectrum"][test[:10]] = np.nan
    patchy: Rows = [
        {name: value for name, value in row.items() if not (number in test[10:15] and name == "mag_r")}
        for number, row in enumerate(rows)
    ]
    results = evaluate(write_embeddings(tmp_path / "e", patchy, holes, [url]), tmp_path / "report.html")
    assert results["redshift"]["held_out"] == len(test) - 15
    assert results["cross_modal"]["image to spectrum"]["candidates"] == len(test) - 10


def test_a_dataset_or_run_that_is_gone_costs_the_figures_only(
    embeddings: str, dataset: tuple[str, Rows], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "moved"
    shutil.copytree(tmp_path / "embeddings", elsewhere)
    manifest = json.loads((elsewhere / "manifest.json").read_text()) | {"dataset": [str(tmp_path / "gone")]}
    (elsewhere / "manifest.json").write_text(json.dumps(manifest))
    results = evaluate(str(elsewhere), tmp_path / "report.html", str(tmp_path / "no-run"))
    assert len(results["notes"]) == 3
    assert "loss curve is missing" in results["notes"][0]
    assert "gone" in results["notes"][1]
    assert "methods" in results["redshift"]


def test_panels_show_the_nearest_by_brute_force(embeddings: str) -> None:
    table = EmbeddingTable.read(embeddings)
    candidates = with_all_modalities(table, hold_out(table.strings("split"), table.strings("key")).queries)
    queries = choose_queries(table, candidates)
    redshift = table.numbers("redshift")[queries]
    assert len(queries) == 4
    assert list(redshift) == sorted(redshift)
    for query in queries:
        for (asked, among), rows in retrieve(table, int(query), candidates).neighbours.items():
            cosines = table.embeddings[among][candidates] @ table.embeddings[asked][query]
            if asked == among:
                cosines[candidates == query] = -2
            assert list(rows) == list(candidates[np.argsort(-cosines)[:6]])


def test_command(embeddings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["evaluate", embeddings, str(tmp_path / "r.html"), "--json"])
    assert args.run(args) == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1
    args = parser.parse_args(["evaluate", str(tmp_path / "nothing"), str(tmp_path / "r2.html")])
    with pytest.raises(DataError, match="No embeddings"):
        args.run(args)
    assert not (tmp_path / "r2.html").exists()


def result(image: tuple[float, float, float], difference: tuple[float, float, float]) -> RedshiftResult:
    quality = {
        "image": RedshiftQuality(*image, 0.1, 0.1, 0.0),
        "magnitudes": RedshiftQuality(0.7, 0.6, 0.8, 0.1, 0.1, 0.0),
    }
    truth: Any = np.zeros(1000)
    return RedshiftResult(10, truth, {"image": truth, "magnitudes": truth}, quality, {"image": difference})


@pytest.mark.parametrize(
    ("image", "difference", "said"),
    [
        ((0.8, 0.7, 0.9), (0.1, 0.05, 0.15), "they beat"),
        ((0.71, 0.6, 0.8), (0.01, -0.05, 0.07), "do not beat .* beyond the noise"),
        ((0.5, 0.4, 0.6), (-0.2, -0.3, -0.1), "do not reach"),
        ((-0.1, -0.2, -0.01), (-0.8, -0.9, -0.7), "no better than guessing the mean"),
    ],
)
def test_the_verdict_follows_the_numbers(
    image: tuple[float, float, float], difference: tuple[float, float, float], said: str
) -> None:
    recall = CrossModalRecall(1000, {1: 0.001, 10: 0.012}, {1: 0.001, 10: 0.01}, 480.0)
    verdict = write_verdict(result(image, difference), {"image to spectrum": recall}, None)
    assert re.search(said, verdict)
    assert "no more than chance may give" in verdict


@pytest.mark.parametrize(
    ("hits", "said"), [(3, "no more than chance"), (4, "4.0 times chance"), (50, "50 times chance")]
)
def test_the_verdict_knows_luck(hits: int, said: str) -> None:
    recall = CrossModalRecall(1000, {1: hits / 1000, 10: 0.1}, {1: 0.001, 10: 0.01}, 480.0)
    verdict = write_verdict("No redshift.", {"image to spectrum": recall}, None)
    # Of 1000 draws at 1/1000 each, four or more come with probability 0.019, three or more with 0.080.
    assert said in verdict

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
from astroclip_dist.errors import ConfigError, DataError
from astroclip_dist.evaluate.command import add_parser
from astroclip_dist.evaluate.findings import measure
from astroclip_dist.evaluate.gallery import Runs
from astroclip_dist.evaluate.held_out import hold_out
from astroclip_dist.evaluate.methods import Method
from astroclip_dist.evaluate.metrics import Interval
from astroclip_dist.evaluate.panels import choose_queries, retrieve, with_all_modalities
from astroclip_dist.evaluate.prediction import Comparison, Prediction
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


def test_the_whole_report(dataset: tuple[str, Rows], tmp_path: Path) -> None:
    run = Store(tmp_path / "run")
    tracker = Tracker.open(run, f"sqlite:///{tmp_path}/mlflow.db", "report", "x")
    for step in range(100):
        tracker.log_metrics(step, {"loss": 4 / (step + 1)})
    assert tracker.close() == 0
    url, rows = dataset
    massive: Rows = [row | {"log_stellar_mass": 9 + 3 * float(str(row["redshift"]))} for row in rows]
    embeddings = write_embeddings(tmp_path / "massive", massive, vectors(rows), [url])
    other = write_embeddings(tmp_path / "other", rows, follow(rows, 3.0, 3.0, seed=5), [url], objective="dinov2")
    results = evaluate(
        embeddings, tmp_path / "out" / "report.html", compare_with=[("unaligned", other)], runs=Runs(embedded=run.url)
    )
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert page.loads == [], "the page must need no other file"
    assert page.headings == [
        "Nearest neighbours",
        "Redshift",
        "What the embeddings gain",
        "All properties",
        "Retrieval across modalities",
        "Map of the embeddings",
        "Training loss",
        "Lineage",
    ]
    assert len(page.images) == 4 + 4
    for image in page.images:
        picture = Image.open(io.BytesIO(base64.b64decode(image.split(",")[1])))
        assert len(picture.convert("L").getcolors(1 << 20) or []) > 20, "an empty picture"
    methods = results["redshift"]["methods"]
    assert methods["spectrum"]["r2"] > methods["magnitudes"]["r2"] > methods["image"]["r2"]
    assert f"{methods['image']['r2']:.3f}" in text
    for line in results["verdict"].split("\n"):
        assert line in text
    assert "Image embeddings" in results["verdict"]
    assert "they do not reach the g, r, z magnitudes" in results["verdict"]
    assert ["Attention of" in note and "no complete checkpoint" in note for note in results["notes"]] == [True]
    assert "unaligned" in text
    assert results["galaxies"]["neighbours"] + results["galaxies"]["held_out"] == len(dataset[1])
    assert results["lineage"]["datasets"][0]["source"]["name"] == "drawn"
    assert results["lineage"]["checkpoint"] in text
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix not in (".html", ".json")] == []


def read_and_measure(url: str) -> dict[str, Any]:
    return measure(EmbeddingTable.read(url)).as_json()


def test_one_split_is_named(dataset: tuple[str, Rows], tmp_path: Path) -> None:
    url, rows = dataset
    one_split: Rows = [row | {"split": "train"} for row in rows]
    results = read_and_measure(write_embeddings(tmp_path / "e", one_split, vectors(rows), [url]))
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
    results = read_and_measure(write_embeddings(tmp_path / "e", without, vectors(rows), [url]))
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
    results = read_and_measure(write_embeddings(tmp_path / "e", patchy, holes, [url]))
    assert results["redshift"]["held_out"] == len(test) - 15
    assert results["cross_modal"]["image to spectrum"]["candidates"] == len(test) - 10


def test_a_dataset_or_run_that_is_gone_costs_the_figures_only(
    embeddings: str, dataset: tuple[str, Rows], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "moved"
    shutil.copytree(tmp_path / "embeddings", elsewhere)
    manifest = json.loads((elsewhere / "manifest.json").read_text()) | {"dataset": [str(tmp_path / "gone")]}
    (elsewhere / "manifest.json").write_text(json.dumps(manifest))
    results = evaluate(str(elsewhere), tmp_path / "report.html", runs=Runs(embedded=str(tmp_path / "no-run")))
    assert len(results["notes"]) == 4
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
    assert json.loads(capsys.readouterr().out)["schema_version"] == 2
    args = parser.parse_args(["evaluate", str(tmp_path / "nothing"), str(tmp_path / "r2.html")])
    with pytest.raises(DataError, match="No embeddings"):
        args.run(args)
    assert not (tmp_path / "r2.html").exists()


def follow(rows: Rows, image: float, spectrum: float, seed: int) -> dict[str, np.ndarray]:
    """Vectors that follow redshift with some noise each."""
    redshift = np.array([row["redshift"] for row in rows], float)
    return {
        "image": redshift_vectors(redshift, image, seed=seed),
        "spectrum": redshift_vectors(redshift, spectrum, seed=seed + 1),
    }


def shuffled(folder: Path, rows: Rows, made: dict[str, np.ndarray], objective: str = "clip") -> EmbeddingTable:
    """Embeddings in another order of rows, with other parts."""
    order = np.random.default_rng(0).permutation(len(rows))
    vectors = {name: vector[order] for name, vector in made.items()}
    return EmbeddingTable.read(
        write_embeddings(folder, [rows[i] for i in order], vectors, part_rows=77, objective=objective)
    )


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(3.0, 1.0, "Alignment helps"), (1.0, 3.0, "Alignment hurts"), (1.0, 1.0, "Alignment neither helps nor hurts")],
)
def test_the_alignment_is_judged(
    dataset: tuple[str, Rows], tmp_path: Path, before: float, after: float, said: str
) -> None:
    """Images with signal against images without, the reverse, and images that are equally good."""
    rows = dataset[1]
    table = EmbeddingTable.read(write_embeddings(tmp_path / "aligned", rows, follow(rows, after, 1.0, seed=10)))
    other = shuffled(tmp_path / "before", rows, follow(rows, before, 1.0, seed=20), "dinov2")
    findings = measure(table, [("before", other)])
    assert f"{said} images" in findings.verdict
    assert "neither helps nor hurts spectra beyond the noise" in findings.verdict
    results = findings.as_json()
    image, spectrum = results["comparisons"]
    assert (image["method"], image["against"], image["property"]) == ("image", "before image", "redshift")
    assert image["difference"] == pytest.approx(image["r2"] - image["r2_against"])
    assert image["low"] < image["difference"] < image["high"]
    assert spectrum["is"] == "within the noise"
    methods = results["redshift"]["methods"]
    assert list(methods) == ["magnitudes", "before image", "image", "before spectrum", "spectrum"]
    assert methods["before image"]["r2"] == image["r2_against"]


def test_matched_by_key_the_same_embeddings_are_the_same(
    embeddings: str, dataset: tuple[str, Rows], tmp_path: Path
) -> None:
    """A shuffled copy predicts exactly what the embeddings predict."""
    copy = shuffled(tmp_path / "copy", dataset[1], vectors(dataset[1]))
    findings = measure(EmbeddingTable.read(embeddings), [("copy", copy)])
    assert [comparison.difference.value for comparison in findings.comparisons] == pytest.approx([0, 0], abs=1e-9)
    assert "Image embeddings are not different beyond the noise from copy, images" in findings.verdict


def test_other_galaxies_cannot_be_compared(embeddings: str, dataset: tuple[str, Rows], tmp_path: Path) -> None:
    rows, image = dataset[1], vectors(dataset[1])["image"]
    table = EmbeddingTable.read(embeddings)
    fewer = EmbeddingTable.read(write_embeddings(tmp_path / "fewer", rows[7:], {"image": image[7:]}))
    with pytest.raises(DataError, match=r"7 of the 300 galaxies .* are missing"):
        measure(table, [("x", fewer)])
    twice = EmbeddingTable.read(write_embeddings(tmp_path / "twice", [rows[7], *rows[7:]], {"image": image[6:]}))
    with pytest.raises(DataError, match="1 of 294 keys twice"):
        measure(table, [("x", twice)])
    with pytest.raises(ConfigError, match="x image"):
        measure(table, [("x", table), ("x", table)])


def test_properties(dataset: tuple[str, Rows], tmp_path: Path) -> None:
    """One that follows the embeddings, one that does not, one that few have; and those that cannot be had."""
    rows, rng = dataset[1], np.random.default_rng(0)
    labelled: Rows = []
    for number, row in enumerate(rows):
        labels = {"log_stellar_mass": 9 + 3 * float(str(row["redshift"])), "age_gyr": float(rng.uniform(1, 10))}
        labelled.append(row | labels | ({"log_ssfr": -10.0} if number < 5 else {}))
    table = EmbeddingTable.read(write_embeddings(tmp_path / "e", labelled, vectors(rows)))
    results = measure(table).as_json()
    assert list(results["properties"]) == ["log_stellar_mass", "age_gyr", "log_ssfr"]
    redshift, mass = results["redshift"]["methods"], results["properties"]["log_stellar_mass"]["methods"]
    assert mass["spectrum"]["r2"] == pytest.approx(redshift["spectrum"]["r2"], abs=1e-6)
    assert results["properties"]["age_gyr"]["methods"]["spectrum"]["r2"] < 0.1
    assert "have log_ssfr" in results["properties"]["log_ssfr"]["note"]
    assert list(measure(table, properties=["mag_r"]).as_json()["properties"]) == ["mag_r"]
    with pytest.raises(DataError, match="column mass"):
        measure(table, properties=["mass"])
    with pytest.raises(DataError, match="not a number"):
        measure(table, properties=["morphology"])


def test_modalities_that_were_never_aligned_are_not_searched_across(dataset: tuple[str, Rows], tmp_path: Path) -> None:
    table = shuffled(tmp_path / "e", dataset[1], vectors(dataset[1]), "masked_spectrum")
    assert measure(table).recall == {}


def image_against(difference: tuple[float, float, float], name: str) -> Comparison:
    none: Any = None
    method = Method("image", "aligned images", none, "image", evaluated=True, aligned=True)
    against = Method("unaligned", "unaligned", none, "image")
    return Comparison(name, method, against, 0.7, 0.6, Interval(*difference))


def test_the_verdict_on_the_other_properties() -> None:
    comparisons = [
        image_against((0.1, 0.05, 0.15), "redshift"),
        image_against((0.1, 0.05, 0.15), "mass"),
        image_against((0.1, 0.05, 0.15), "age"),
        image_against((-0.1, -0.2, -0.05), "rate"),
        image_against((0.0, -0.2, 0.05), "metals"),
    ]
    verdict = write_verdict("No redshift.", {}, comparisons, {}, None)
    assert (
        "For the other properties (mass, age, rate and metals) it is better for mass and age, worse for rate" in verdict
    )
    assert "for the rest within the noise" in verdict
    verdict = write_verdict("No redshift.", {}, [comparisons[0], comparisons[4]], {}, None)
    assert "(metals) it is not different beyond the noise." in verdict


def prediction(image: tuple[float, float, float]) -> Prediction:
    r2 = {"image": Interval(*image), "magnitudes": Interval(0.7, 0.6, 0.8)}
    truth: Any = np.zeros(1000)
    return Prediction(10, truth, {"image": truth, "magnitudes": truth}, r2)


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
    over = {"image": Interval(*difference)}
    verdict = write_verdict(prediction(image), over, [], {"image to spectrum": recall}, None)
    assert re.search(said, verdict)
    assert "no more than chance may give" in verdict


@pytest.mark.parametrize(
    ("hits", "said"), [(3, "no more than chance"), (4, "4.0 times chance"), (50, "50 times chance")]
)
def test_the_verdict_knows_luck(hits: int, said: str) -> None:
    recall = CrossModalRecall(1000, {1: hits / 1000, 10: 0.1}, {1: 0.001, 10: 0.01}, 480.0)
    verdict = write_verdict("No redshift.", {}, [], {"image to spectrum": recall}, None)
    # Of 1000 draws at 1/1000 each, four or more come with probability 0.019, three or more with 0.080.
    assert said in verdict

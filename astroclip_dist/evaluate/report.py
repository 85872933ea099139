"""From a folder of embeddings to one HTML file with all figures inside, and ``results.json`` beside it."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from astroclip_dist.data.lookup import SampleLookup
from astroclip_dist.embed.table import EmbeddingTable
from astroclip_dist.errors import DataError, StorageError, UserError
from astroclip_dist.evaluate.figures import TITLES, draw_loss, draw_map, draw_redshifts, to_png
from astroclip_dist.evaluate.held_out import HeldOut, hold_out
from astroclip_dist.evaluate.knn import K
from astroclip_dist.evaluate.panels import choose_queries, draw_retrieval, retrieve, with_all_modalities
from astroclip_dist.evaluate.redshift import RedshiftResult, predict_redshifts
from astroclip_dist.evaluate.retrieval import CrossModalRecall, cross_modal_recall
from astroclip_dist.evaluate.verdict import write_verdict
from astroclip_dist.store import Store
from astroclip_dist.train.mlflow_run import read_history

RESULTS_NAME = "results.json"


def evaluate(embeddings_url: str, out_path: Path, run_url: str | None = None) -> dict[str, Any]:
    """Evaluate embeddings on held-out galaxies and write the report.

    Args:
        embeddings_url: folder made by ``astroclip embed``.
        out_path: the HTML file; ``results.json`` goes into its folder. Both appear complete or not at all.
        run_url: the run folder of the training, for its loss curve.

    Returns:
        What ``results.json`` holds.

    Raises:
        DataError, StorageError, CredentialsError
    """
    table = EmbeddingTable.read(embeddings_url)
    held_out = hold_out(table.strings("split"), table.strings("key"))
    redshift = predict_redshifts(table, held_out)
    recall = _recall(table, held_out)
    history, loss_note = _loss_history(run_url)
    panels, panel_note = _panels(table, held_out)
    datasets, source_note = _describe_datasets(table)
    results: dict[str, Any] = {
        "schema_version": 1,
        "verdict": write_verdict(redshift, recall, held_out.note),
        "galaxies": {
            "all": len(table),
            "neighbours": int(held_out.neighbours.sum()),
            "held_out": int(held_out.queries.sum()),
            "note": held_out.note,
        },
        "redshift": _redshift_results(redshift),
        "cross_modal": {direction: asdict(result) for direction, result in recall.items()},
        "lineage": {
            "embeddings": table.url,
            "embedding_size": table.manifest.embedding_size,
            "checkpoint": table.manifest.checkpoint,
            "run": table.manifest.run,
            "datasets": datasets,
            "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        },
        "notes": [note for note in (loss_note, panel_note, source_note) if note],
    }
    z = table.numbers("redshift") if "redshift" in table.columns.column_names else np.full(len(table), np.nan)
    figures: dict[str, Figure | None] = {
        "redshift": draw_redshifts(redshift) if isinstance(redshift, RedshiftResult) else None,
        "map": draw_map(table.embeddings, z),
        "loss": draw_loss(history) if history else None,
    }
    page = _render(results, {name: figure for name, figure in figures.items() if figure is not None}, panels)
    _write(out_path, page.encode())
    _write(out_path.parent / RESULTS_NAME, json.dumps(results, indent=1).encode())
    return results


def _recall(table: EmbeddingTable, held_out: HeldOut) -> dict[str, CrossModalRecall]:
    if set(table.embeddings) != {"image", "spectrum"}:
        return {}
    pairs = with_all_modalities(table, held_out.partners)
    if len(pairs) < 2:
        return {}
    image, spectrum = table.embeddings["image"][pairs], table.embeddings["spectrum"][pairs]
    return {
        "image to spectrum": cross_modal_recall(image, spectrum),
        "spectrum to image": cross_modal_recall(spectrum, image),
    }


def _loss_history(run_url: str | None) -> tuple[list[tuple[int, float]], str | None]:
    if run_url is None:
        return [], None
    try:
        return read_history(Store(run_url), "loss"), None
    except Exception as error:  # whatever MLflow's stores raise: a report without this curve is still a report
        return [], f"The loss curve is missing: MLflow gives none for {run_url} ({str(error).splitlines()[0][:200]})."


def _panels(table: EmbeddingTable, held_out: HeldOut) -> tuple[list[Figure], str | None]:
    candidates = with_all_modalities(table, held_out.partners)
    if len(candidates) < 2:
        return [], "There are no retrieval panels: fewer than two galaxies have all modalities."
    try:
        lookup = SampleLookup(table.manifest.dataset)
        return [
            draw_retrieval(table, lookup, retrieve(table, int(query), candidates))
            for query in choose_queries(table, candidates)
        ], None
    except UserError as error:
        return [], f"There are no retrieval panels, because the galaxies cannot be read: {error}"


def _describe_datasets(table: EmbeddingTable) -> tuple[list[dict[str, Any]], str | None]:
    described: list[dict[str, Any]] = [{"url": url} for url in table.manifest.dataset]
    try:
        for entry, manifest in zip(described, SampleLookup(table.manifest.dataset).manifests, strict=True):
            entry |= {"source": manifest.source, "samples": sum(manifest.counts.values())}
    except (DataError, StorageError) as error:
        return described, f"The datasets' own descriptions cannot be read: {error}"
    return described, None


def _redshift_results(result: RedshiftResult | str) -> dict[str, Any]:
    if isinstance(result, str):
        return {"note": result}
    return {
        "known": result.known,
        "held_out": len(result.truth),
        "k": K,
        "methods": {name: asdict(quality) for name, quality in result.quality.items()},
        "r2_over_magnitudes": {
            name: {"difference": difference, "low": low, "high": high}
            for name, (difference, low, high) in result.over_magnitudes.items()
        },
    }


def _render(results: dict[str, Any], figures: dict[str, Figure], panels: list[Figure]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("astroclip_dist.evaluate", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("report.html.jinja")
    return template.render(
        results=results,
        titles=TITLES,
        figures={name: _inline(figure) for name, figure in figures.items()},
        panels=[_inline(figure) for figure in panels],
    )


def _inline(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(to_png(figure)).decode()


def _write(path: Path, content: bytes) -> None:
    Store(path.parent).put(path.name, content)

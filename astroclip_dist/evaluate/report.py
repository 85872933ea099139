"""From a folder of embeddings to one HTML file with all figures inside, and ``results.json`` beside it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from astroclip_dist.data.reading.lookup import SampleLookup
from astroclip_dist.embed.table import EmbeddingTable
from astroclip_dist.errors import DataError, StorageError, UserError
from astroclip_dist.evaluate.figures import draw_loss, draw_map, draw_properties, draw_redshifts, to_png
from astroclip_dist.evaluate.findings import REDSHIFT, Findings, measure
from astroclip_dist.evaluate.gallery import Gallery, Runs, draw_gallery
from astroclip_dist.evaluate.held_out import HeldOut
from astroclip_dist.evaluate.panels import choose_queries, draw_retrieval, retrieve, with_all_modalities
from astroclip_dist.evaluate.prediction import Prediction
from astroclip_dist.store import Store
from astroclip_dist.train.mlflow_run import read_history

RESULTS_NAME = "results.json"


def evaluate(
    embeddings_url: str,
    out_path: Path,
    *,
    compare_with: Sequence[tuple[str, str]] = (),
    properties: Sequence[str] | None = None,
    runs: Runs | None = None,
    spectra: str | None = None,
) -> dict[str, Any]:
    """Evaluate embeddings on held-out galaxies and write the report.

    Args:
        embeddings_url: folder made by ``astroclip embed``.
        out_path: the HTML file; ``results.json`` goes into its folder. Both appear complete or not at all.
        compare_with: (name, folder) of other embeddings of the same dataset, asked about the same galaxies.
        properties: to predict beside redshift; None: those of ``prediction.PROPERTIES`` that the galaxies have.
        runs: the trainings behind the embeddings, for the loss curve and figures of what they fill in and attend to.
        spectra: another dataset for the latter.

    Returns:
        What ``results.json`` holds.

    Raises:
        DataError, ConfigError, StorageError, CredentialsError
    """
    runs = runs or Runs()
    table = EmbeddingTable.read(embeddings_url)
    others = [(name, EmbeddingTable.read(url)) for name, url in compare_with]
    findings = measure(table, others, properties)
    history, loss_note = _loss_history(runs.embedded)
    panels, panel_note = _panels(table, findings.held_out)
    datasets, source_note = _describe_datasets(table)
    gallery = draw_gallery(runs, table.manifest.dataset, spectra)
    results: dict[str, Any] = {
        "schema_version": 2,
        **findings.as_json(),
        "reconstruction": gallery.measured,
        "lineage": {
            "embeddings": table.url,
            "sizes": table.manifest.sizes,
            "objective": table.manifest.objective,
            "checkpoint": table.manifest.checkpoint,
            "run": table.manifest.run,
            "datasets": datasets,
            "compared": [
                {"name": name, "embeddings": other.url, "checkpoint": other.manifest.checkpoint}
                for name, other in others
            ],
            "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        },
        "notes": [note for note in (loss_note, panel_note, source_note, *gallery.notes) if note],
    }
    page = _render(results, _charts(table, findings, history), panels, gallery)
    _write(out_path, page.encode())
    _write(out_path.parent / RESULTS_NAME, json.dumps(results, indent=1).encode())
    return results


def _charts(table: EmbeddingTable, findings: Findings, history: list[tuple[int, float]]) -> dict[str, Figure]:
    """By name, those for which there is something to draw."""
    methods, redshift = findings.methods, findings.redshift
    z = table.numbers(REDSHIFT) if REDSHIFT in table.columns.column_names else np.full(len(table), np.nan)
    charts = {"map": draw_map([method for method in methods if method.modality is not None], z)}
    if isinstance(redshift, Prediction):
        charts["redshift"] = draw_redshifts(redshift, methods)
    if len(findings.predicted) > 1:
        charts["properties"] = draw_properties(findings.predicted, methods)
    if history:
        charts["loss"] = draw_loss(history)
    return charts


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


def _render(results: dict[str, Any], figures: dict[str, Figure], panels: list[Figure], gallery: Gallery) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("astroclip_dist.evaluate", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("report.html.jinja")
    return template.render(
        results=results,
        figures={name: _inline(figure) for name, figure in figures.items()},
        panels=[_inline(figure) for figure in panels],
        reconstructions=[(caption, _inline(figure)) for caption, figure in gallery.reconstructions],
        attention=[(caption, _inline(figure)) for caption, figure in gallery.attention],
    )


def _inline(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(to_png(figure)).decode()


def _write(path: Path, content: bytes) -> None:
    Store(path.parent).put(path.name, content)

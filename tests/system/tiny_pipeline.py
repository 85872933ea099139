"""The three stages, embeddings and report as a pipeline of jobs that take no longer than processes need to start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.random_survey import write_random_survey

TRAINING = """
workers: 1
device: cpu
length: 4 steps
batch: {global_size: 16, lanes: 4, window_shards: 1}
optimizer: {lr: 1e-3}
"""
ENCODERS = {
    "image": "image: {width: 32, depth: 1, heads: 2, crop: 20, patch: 4}",
    "spectrum": "spectrum: {width: 32, depth: 1, heads: 2, slice_size: 20, slice_stride: 10}",
}
OBJECTIVES = {
    "image": f"""{{name: dinov2, {ENCODERS["image"]}, global_views: {{count: 2, size: 20}},
      local_views: {{count: 2, size: 12}}, head: {{layers: 2, hidden: 16, bottleneck: 8, prototypes: 32}}}}""",
    "spectrum": f"{{name: masked_spectrum, {ENCODERS['spectrum']}, masks: 2, mask_width: 3}}",
    "align": f"{{name: clip, {ENCODERS['image']}, {ENCODERS['spectrum']}, head: {{embedding: 16}}}}",
}
PIPELINE = """
name: tiny
values: {data: DATA, out: OUT}
defaults:
  launcher: LAUNCHER
  override: {data: "${data}"}
jobs:
  image: {config: image.yaml, override: {run: "${out}/image"}}
  spectrum: {config: spectrum.yaml, override: {run: "${out}/spectrum"}}
  align:
    after: [image, spectrum]
    config: align.yaml
    override: {run: "${out}/align", objective: {image_from: "${out}/image", spectrum_from: "${out}/spectrum"}}
  embed: {after: align, command: [embed, "${out}/align", "${data}", "${out}/embeddings"]}
  evaluate: {after: embed, command: [evaluate, "${out}/embeddings", "${out}/report.html", "--run=${out}/align"]}
"""
AFTER = {"image": (), "spectrum": (), "align": ("image", "spectrum"), "embed": ("align",), "evaluate": ("embed",)}


def write_pipeline(folder: Path, launcher: dict[str, Any]) -> Path:
    """The pipeline's file, named ``tiny``, and the configurations of its trainings; results come below ``out``."""
    for name, objective in OBJECTIVES.items():
        (folder / f"{name}.yaml").write_text(f"{TRAINING}objective: {objective}\n")
    places = {"DATA": str(folder / "data"), "OUT": str(folder / "out"), "LAUNCHER": json.dumps(launcher)}
    text = PIPELINE
    for word, value in places.items():
        text = text.replace(word, value)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def write_survey(folder: Path) -> None:
    """The dataset that the pipeline reads."""
    write_random_survey(str(folder / "data"), 160, splits={"train": 0.7, "test": 0.3})

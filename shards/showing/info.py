"""Describe a dataset from its manifest, for people and for scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from astroclip_dist.data.stored.manifest import SPLITS, Manifest, read_manifest
from astroclip_dist.store import Store
from shards.showing.contact_sheet import GALAXIES_ON_SHEET, draw_contact_sheet
from shards.stored.reading import first_samples


def describe(url: str) -> dict[str, Any]:
    """What a dataset holds, as JSON-ready values: its manifest without the list of shards, and their totals.

    Raises:
        DataError: no dataset there, or a manifest of another schema.
        StorageError: the storage does not answer or refuses.
    """
    store = Store(url)
    return {"url": store.url, **summarize(read_manifest(store))}


def summarize(manifest: Manifest) -> dict[str, Any]:
    """A manifest without its list of shards, with their number and bytes instead."""
    return {
        **manifest.model_dump(mode="json", exclude={"shards"}),
        "samples": sum(manifest.counts.values()),
        "shards": {split: sum(entry.split == split for entry in manifest.shards) for split in SPLITS},
        "bytes": sum(entry.bytes for entry in manifest.shards),
    }


def format_summary(summary: dict[str, Any]) -> str:
    """A summary of :func:`describe` as text."""
    shards, counts = summary["shards"], summary["counts"]
    lines = [
        f"dataset    {summary['url']}",
        f"samples    {summary['samples']:,} in {sum(shards.values()):,} shards, {summary['bytes'] / 1e9:.3g} GB",
        *(f"  {split:<8} {counts.get(split, 0):,} in {shards[split]:,} shards" for split in SPLITS),
    ]
    image, spectrum = summary["image"], summary["spectrum"]
    if image:
        lines.append(
            f"image      {', '.join(image['bands'])}; {image['size']} x {image['size']} px of "
            f"{image['pixel_scale_arcsec']} arcsec; {image['unit']}; {image['dtype']}"
        )
        lines += [
            f"  {band['band']:<8} mean {band['mean']:.4g}, std {band['std']:.4g} (train)"
            for band in summary["band_statistics"]
        ]
    if spectrum:
        last = spectrum["start_angstrom"] + spectrum["step_angstrom"] * (spectrum["size"] - 1)
        lines.append(
            f"spectrum   {spectrum['size']} bins, {spectrum['start_angstrom']:g} to {last:g} A by "
            f"{spectrum['step_angstrom']:g} A; {spectrum['unit']}; "
            f"{'with' if summary['ivar'] else 'without'} inverse variances"
        )
    skipped, duplicates = (summary["source"].get(name) for name in ("galaxies_skipped", "duplicates_left_out"))
    if skipped or duplicates:
        lines.append(
            f"left out   {skipped:,} that could not be used (see skipped.jsonl), {duplicates:,} that came twice"
        )
    lines.append("source")
    lines += [f"  {name}: {value}" for name, value in summary["source"].items()]
    return "\n".join(lines)


def print_summary(summary: dict[str, Any], as_json: bool) -> None:
    """As JSON, or as text for people."""
    print(json.dumps(summary) if as_json else format_summary(summary))


def write_contact_sheet(url: str, path: Path, galaxies: int = GALAXIES_ON_SHEET) -> None:
    """Draw a dataset's first galaxies, read through its index, as a PNG file.

    Raises:
        DataError, StorageError: the dataset cannot be read, or the file cannot be written.
    """
    store = Store(url)
    manifest = read_manifest(store)
    samples = first_samples(store, manifest, galaxies)
    title = f"{store.url}   {sum(manifest.counts.values()):,} galaxies"
    sheet = draw_contact_sheet(samples, manifest.image, manifest.spectrum, title)
    Store(path.parent).put(path.name, sheet)

"""A dataset of random numbers in a small layout: fast to write, and every sample's content tells which one it is."""

from __future__ import annotations

import zlib

import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout, Manifest, SpectrumLayout, Split
from shards.sample import Sample
from shards.writing.writer import ShardWriter

IMAGE = ImageLayout(size=24)
SPECTRUM = SpectrumLayout(size=120)


def random_sample(key: str, image: ImageLayout = IMAGE, spectrum: SpectrumLayout = SPECTRUM) -> Sample:
    """A sample whose arrays follow from its key. Image and spectrum share a brightness, so that they can be aligned."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    colour = rng.normal(size=3)
    height, width = np.mgrid[-1 : 1 : image.size * 1j, -1 : 1 : image.size * 1j]
    blob = np.exp(-(height**2 + width**2) * 4)
    flux = blob * np.exp(colour)[:, None, None] + rng.normal(scale=0.02, size=image.shape)
    wave = np.linspace(0, 1, spectrum.size)
    continuum = 3 + np.sin(wave[None, :] * np.array([[3.0], [9.0], [27.0]])).T @ colour
    return Sample(
        key,
        flux.astype(image.dtype),
        (continuum + rng.normal(scale=0.05, size=spectrum.size)).astype(np.float32),
        np.full(spectrum.size, 400.0, np.float32),
        {"redshift": float(abs(colour[0]) / 5), "mag_r": float(20 - colour[1]), "ra": 10.0, "dec": -3.0},
    )


def write_random_survey(
    url: str,
    samples: int,
    *,
    samples_per_shard: int = 40,
    splits: dict[Split, float] | None = None,
    image: ImageLayout = IMAGE,
    spectrum: SpectrumLayout = SPECTRUM,
) -> Manifest:
    """Write such a dataset; all samples in the training split unless said otherwise."""
    with ShardWriter(
        url,
        image,
        spectrum,
        True,
        {"kind": "random"},
        samples_per_shard=samples_per_shard,
        split_fractions=splits or {"train": 1.0},
    ) as writer:
        for number in range(samples):
            writer.add(random_sample(f"random-{number}", image, spectrum))
        return writer.finish()

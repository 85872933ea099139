"""Catalogue, match and joined source where datasets and tables lie on a real S3 server."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from shards.crossmatch.command import add_parsers
from shards.source import all_samples
from shards.sources.joined import Joined
from tests.random_survey import random_sample, write_random_survey
from tests.system.conftest import RealObjectStore
from tests.system.test_store import use


def equal(found: np.ndarray | None, expected: np.ndarray | None) -> bool:
    """Both there, and the same bits."""
    assert found is not None
    assert expected is not None
    return found.dtype == expected.dtype and found.tobytes() == expected.tobytes()


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers(required=True))
    args = parser.parse_args(arguments)
    return args.run(args)


def test_from_two_datasets_to_pairs(
    object_store: RealObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = object_store.create_bucket("crossmatch-tests")
    use(monkeypatch, object_store.trainer)
    for name, galaxies in (("images", 90), ("spectra", 60)):
        write_random_survey(f"{bucket}/{name}", galaxies, samples_per_shard=25)
        assert command("catalogue", f"{bucket}/{name}", f"{bucket}/tables/{name}.parquet") == 0
    match = f"{bucket}/tables/match.parquet"
    capsys.readouterr()
    tables = [f"{bucket}/tables/{name}.parquet" for name in ("images", "spectra")]
    assert command("match", *tables, match, "--by", "id", "--columns", "key", "--json") == 0
    described = json.loads(capsys.readouterr().out)
    assert (described["matched"], described["dataset_b"]) == (60, f"{bucket}/spectra")
    samples = list(all_samples(Joined(f"{bucket}/images", f"{bucket}/spectra", match)))
    assert [sample.key for sample in samples] == [f"random-{number}" for number in range(60)]
    for sample in samples:
        original = random_sample(sample.key)
        assert equal(sample.image, original.image)
        assert equal(sample.spectrum, original.spectrum)
        assert equal(sample.ivar, original.ivar)

"""``astroclip shards``: what people type, what they see, and what lies there afterwards."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from astroclip_dist.cli import main
from astroclip_dist.data.stored.manifest import Manifest, read_manifest
from astroclip_dist.errors import DataError
from astroclip_dist.progress import with_progress
from astroclip_dist.store import Store
from shards.building.build import build
from shards.sample import Sample
from shards.source import SOURCES, source_class
from tests.unit.test_shards_writer import IMAGE, SPECTRUM, make_sample


class Numbers:
    """A source of samples made on the spot; from ``bad_from`` on they are wrong."""

    name = "numbers"
    image = IMAGE
    spectrum = SPECTRUM
    ivar = True

    def __init__(self, count: int, bad_from: int | None = None) -> None:
        self.count, self.bad_from = count, bad_from

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {"count": self.count}

    @property
    def partitions(self) -> int:
        return 1

    def keys(self, partition: int) -> list[str]:
        return [f"galaxy-{number}" for number in range(self.count)]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        for number in rows:
            sample = make_sample(number)
            if self.bad_from is not None and number >= self.bad_from:
                sample.image = np.full(IMAGE.shape, np.inf, np.float32)
            yield sample


def build_numbers(out: Path, **options: int) -> Manifest:
    return build(Numbers(**options), str(out), samples_per_shard=10, progress=io.StringIO())  # type: ignore[arg-type]


def test_every_source_in_the_table_keeps_the_protocol() -> None:
    for name in SOURCES:
        source = source_class(name)
        assert source.name == name
        for attribute in ("add_arguments", "from_arguments", "describe", "partitions", "keys", "read"):
            assert hasattr(source, attribute), (name, attribute)


def test_a_build_says_where_it_comes_from_and_draws_a_sheet(tmp_path: Path) -> None:
    manifest = build_numbers(tmp_path / "set", count=40)
    assert manifest == read_manifest(Store(tmp_path / "set"))
    assert manifest.source["kind"] == "numbers"
    assert manifest.source["count"] == 40
    sheet = np.array(Image.open(tmp_path / "set" / "contact-sheet.png").convert("RGB"))
    assert min(sheet.shape[:2]) > 500
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000  # twelve galaxies in colour, not a white page


def test_a_bad_sample_before_the_first_shard_is_complete_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="galaxy-5: image: 768 values not finite"):
        build_numbers(tmp_path / "set", count=40, bad_from=5)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("out_first", [True, False])
def test_out_may_come_before_or_after_the_options(
    out_first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = str(tmp_path / "set"), ["--galaxies", "3", "--seed", "5", "--json"]
    arguments = [out, *options] if out_first else [*options, out]
    assert main(["shards", "build", "mock", *arguments]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["samples"] == 3
    assert summary["url"] == Path(out).as_uri()
    assert summary["source"]["seed"] == 5
    assert main(["shards", "verify", out]) == 0


def test_build_verify_and_info_of_real_galaxies(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = str(tmp_path / "set"), real_data / "desi" / "fastspecfit"
    files = [str(path) for path in sorted(folder.glob("coadd-*.fits"))]
    tables = [str(path) for path in sorted(folder.glob("redrock-*.fits"))]
    assert main(["shards", "build", "desi-coadd", *files, out, "--redrock", *tables, "--splits", "1", "0", "0"]) == 0
    assert "2 in 1 shards" in capsys.readouterr().out
    assert main(["shards", "verify", out, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sound"] is True
    assert report["samples"] == 2
    sheet = tmp_path / "sheet.png"
    assert main(["shards", "info", out, "--json", "--contact-sheet", str(sheet)]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"train": 2, "val": 0, "test": 0}
    assert Image.open(sheet).size[0] > 500


def test_verify_fails_with_the_fault_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_numbers(tmp_path / "set", count=40)
    (tmp_path / "set" / "train-000001.idx").unlink()
    assert main(["shards", "verify", str(tmp_path / "set")]) == 1
    out = capsys.readouterr().out
    assert "FAULT train-000001.idx: missing" in out
    assert "1 faults" in out


def test_bad_input_is_one_line_and_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.fits").write_bytes(b"SIMPLE")
    assert main(["shards", "build", "legacy-fits", str(tmp_path / "bad.fits"), str(tmp_path / "set")]) == 1
    err = capsys.readouterr().err
    assert err.count("error:") == 1
    assert "bad.fits: not a readable FITS file" in err
    assert "Traceback" not in err
    assert not (tmp_path / "set").exists()


def test_wrong_usage_is_code_2(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["shards", "build", "nonsense", str(tmp_path)])
    assert caught.value.code == 2
    assert main(["shards", "build", "mock", "--galaxies", "1", "--splits", "1", "1", "1", str(tmp_path / "set")]) == 2


def test_help_does_not_wait_for_the_sources() -> None:
    script = "import sys, shards.command; print({'torch', 'matplotlib', 'galsim', 'astropy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_progress_away_from_a_terminal_is_plain_lines_with_rate_and_time_left() -> None:
    stream = io.StringIO()
    assert list(with_progress(range(5), 5, "galaxies", stream, line_every_s=0.0)) == [0, 1, 2, 3, 4]
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6
    assert lines[1].startswith("2 of 5 galaxies, ")
    assert lines[1].endswith(" left")
    assert "/s" in lines[1]
    assert lines[-1].startswith("5 galaxies in ")


def test_progress_on_a_terminal_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    assert list(with_progress(range(5), 5, "galaxies", stream)) == [0, 1, 2, 3, 4]
    assert "5/5" in stream.getvalue()

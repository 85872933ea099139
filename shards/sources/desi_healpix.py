"""DESI's healpix coadds as the data releases publish them: a tree of folders, a redrock table beside each coadd.

Layout (https://desidatamodel.readthedocs.io): ``healpix/SURVEY/PROGRAM/PIXGROUP/PIXNUM/`` with
``coadd-SURVEY-PROGRAM-PIXNUM.fits`` and ``redrock-SURVEY-PROGRAM-PIXNUM.fits``; PIXNUM is a nested healpix pixel of
nside 64.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.sample import Sample
from shards.sources.desi_coadd import SELECTION, read_coadd, read_good_targets
from shards.sources.redrock import read_redshifts

_COADD = re.compile(r"coadd-([a-z0-9]+)-([a-z0-9]+)-(\d+)\.fits")

log = logging.getLogger(__name__)


class _Coadd(NamedTuple):
    path: Path
    survey: str
    program: str
    healpix: int

    @property
    def redrock(self) -> Path:
        return self.path.with_name(self.path.name.replace("coadd-", "redrock-", 1))


class DesiHealpix:
    """The source ``desi-healpix``: one sample for each good target, with spectrum, inverse variance and redshift.

    Targets and bins are selected as by ``desi-coadd``. A partition is a coadd; they come in the order of their healpix
    pixels, and within one in the order of the surveys and programs asked for. A target that several of a pixel's coadds
    have (bright and dark time, or sv1 and main) is taken from the first that has it as a good target, from no other.

    Args:
        roots: folders at or above ``healpix/``, or below it.
        surveys: such as sv3 or main; empty for all, in the order of the alphabet.
        programs: such as bright or dark; empty for all, in the order of the alphabet.

    Raises:
        DataError: no such coadds, a coadd under another name, twice, or without its redrock table.
    """

    name = "desi-healpix"
    image: ImageLayout | None = None
    spectrum: SpectrumLayout | None = SpectrumLayout()
    ivar = True

    def __init__(self, roots: Sequence[Path], surveys: Sequence[str] = (), programs: Sequence[str] = ()) -> None:
        found = [coadd for root in roots for coadd in _walk(root)]
        self._surveys = list(surveys) or sorted({coadd.survey for coadd in found})
        self._programs = list(programs) or sorted({coadd.program for coadd in found})
        chosen = [coadd for coadd in found if coadd.survey in self._surveys and coadd.program in self._programs]
        self._coadds = sorted(chosen, key=self._place)
        for one, next_one in zip(self._coadds[:-1], self._coadds[1:], strict=True):
            if one[1:] == next_one[1:]:
                raise DataError(str(next_one.path), f"also at {one.path}", "Give one release, once.")
        if not self._coadds:
            there = sorted({f"{coadd.survey} {coadd.program}" for coadd in found})
            raise DataError(
                ", ".join(map(str, roots)),
                f"no coadds of {' '.join(surveys) or 'any survey'}, {' '.join(programs) or 'any program'}",
                f"There are {', '.join(there)}." if there else "Give the folder healpix/ of a release.",
            )

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("roots", metavar="FOLDER", nargs="+", type=Path, help="the healpix/ folder of a release")
        for option, names in (("--survey", "sv1, sv3, main"), ("--program", "bright, dark, backup")):
            parser.add_argument(
                option,
                metavar="NAME",
                nargs="+",
                action="extend",
                default=[],
                help=f"such as {names} (default: all), the preferred first; give this option after OUT",
            )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(args.roots, args.survey, args.program)

    def describe(self) -> dict[str, str | int | float | bool | None]:
        return {
            "files": len(self._coadds),
            "first_file": self._coadds[0].path.name,
            "last_file": self._coadds[-1].path.name,
            "surveys": " ".join(self._surveys),
            "programs": " ".join(self._programs),
            "selection": SELECTION,
        }

    @property
    def partitions(self) -> int:
        return len(self._coadds)

    def keys(self, partition: int) -> list[str]:
        return [str(target) for target in self._targets(partition)[1]]

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        coadd = self._coadds[partition]
        redshifts = read_redshifts([coadd.redrock])
        for sample in read_coadd(coadd.path, self._targets(partition)[0][list(rows)]):
            if isinstance(sample, DataError):
                yield sample
                continue
            redshift = redshifts.get(sample.metadata["targetid"])
            if redshift is None:
                yield DataError(
                    f"{coadd.path} target {sample.key}",
                    f"not in {coadd.redrock.name}",
                    "Fetch both files from the same release.",
                )
                continue
            sample.metadata |= {
                **redshift,
                "survey": coadd.survey,
                "program": coadd.program,
                "healpix": coadd.healpix,
            }
            yield sample

    def _targets(self, partition: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a coadd and their TARGETIDs, without those of the coadds before it in the same pixel."""
        coadd = self._coadds[partition]
        rows, targets = read_good_targets(coadd.path)
        # A target's pixel follows from its position, so no other pixel's coadd can have it.
        first = partition
        while first > 0 and self._coadds[first - 1].healpix == coadd.healpix:
            first -= 1
        before = [read_good_targets(earlier.path)[1] for earlier in self._coadds[first:partition]]
        again = np.isin(targets, np.concatenate([*before, np.empty(0, np.int64)]))
        if again.any():
            log.info("%s: %d targets are in coadds before it", coadd.path.name, np.count_nonzero(again))
        return rows[~again], targets[~again]

    def _place(self, coadd: _Coadd) -> tuple[int, int, int, str]:
        survey, program = self._surveys.index(coadd.survey), self._programs.index(coadd.program)
        return coadd.healpix, survey, program, str(coadd.path)


def _walk(root: Path) -> Iterator[_Coadd]:
    if not root.is_dir():
        raise DataError(str(root), "no such folder", "Give the folder healpix/ of a release.")
    for folder, _, names in os.walk(root, followlinks=True):
        for name in sorted(names):
            if not (name.startswith("coadd-") and name.endswith(".fits")):
                continue
            match = _COADD.fullmatch(name)
            if match is None:
                raise DataError(
                    f"{folder}/{name}", "not coadd-SURVEY-PROGRAM-HEALPIX.fits", "Use the source desi-coadd for others."
                )
            coadd = _Coadd(Path(folder, name), match.group(1), match.group(2), int(match.group(3)))
            if coadd.redrock.name not in names:
                raise DataError(str(coadd.path), f"no {coadd.redrock.name} beside it", "Fetch it from the release.")
            yield coadd

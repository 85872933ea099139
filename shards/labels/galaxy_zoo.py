"""Labels of Galaxy Zoo DECaLS (Walmsley et al. 2022): volunteers' answers on the morphology of galaxies.

The published ``gz_decals_volunteers_5.csv`` (zenodo 4573248): a row a galaxy with ``ra``, ``dec`` and, for each
question and answer, ``QUESTION_ANSWER`` (votes), ``QUESTION_ANSWER_fraction``, ``QUESTION_ANSWER_debiased``, and
``QUESTION_total-votes``.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from astroclip_dist.errors import DataError

QUESTIONS = {
    "smooth-or-featured": ("smooth", "featured-or-disk", "artifact"),
    "disk-edge-on": ("yes", "no"),
    "has-spiral-arms": ("yes", "no"),
    "bar": ("strong", "weak", "no"),
    "bulge-size": ("dominant", "large", "moderate", "small", "none"),
    "how-rounded": ("round", "in-between", "cigar-shaped"),
    "edge-on-bulge": ("boxy", "none", "rounded"),
    "spiral-winding": ("tight", "medium", "loose"),
    "spiral-arm-count": ("1", "2", "3", "4", "more-than-4", "cant-tell"),
    "merging": ("none", "minor-disturbance", "major-disturbance", "merger"),
}
# Every volunteer answers the first question: its votes are those of the galaxy.
FIRST_QUESTION = "smooth-or-featured"
MIN_VOTES = 3
_PREFIX = "gz_"


def read_galaxy_zoo(path: Path, min_votes: int = MIN_VOTES) -> pa.Table:
    """The galaxies with enough votes.

    Args:
        min_votes: on the first question (AstroCLIP keeps galaxies with 3 and more).

    Returns:
        ``ra``, ``dec`` (deg) and, with ``gz_`` before the published name: votes and totals (int64), and the fractions
        (float64) that the file has; null where it is empty.

    Raises:
        DataError: not such a file, or no galaxy with enough votes.
    """
    votes = [f"{question}_{answer}" for question, answers in QUESTIONS.items() for answer in answers]
    totals = [f"{question}_total-votes" for question in QUESTIONS]
    fractions = [f"{vote}_{kind}" for vote in votes for kind in ("fraction", "debiased")]
    there = _header(path)
    missing = [name for name in ("ra", "dec", *votes, *totals) if name not in there]
    if missing:
        raise DataError(f"{path}: column {missing[0]}", "absent", "Give the published gz_decals_volunteers_5.csv.")
    names = ["ra", "dec", *totals, *votes, *(name for name in fractions if name in there)]
    try:
        table = csv.read_csv(
            path,
            convert_options=csv.ConvertOptions(
                include_columns=names,
                column_types={name: pa.float64() for name in names},
                null_values=["", "nan", "NaN"],
            ),
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(path), f"not readable ({error})", "Fetch it again.") from error
    enough = table.filter(pc.greater_equal(table.column(f"{FIRST_QUESTION}_total-votes"), min_votes))
    if len(enough) == 0:
        raise DataError(str(path), f"no galaxy with {min_votes} votes", "Lower --gz-min-votes, or check the file.")
    labels = {_PREFIX + name: enough.column(name) for name in names[2:]}
    for name in (*totals, *votes):
        try:
            labels[_PREFIX + name] = labels[_PREFIX + name].cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: column {name}", "not all whole numbers", "They are counts of votes.") from error
    return pa.table({"ra": enough.column("ra"), "dec": enough.column("dec"), **labels})


def _header(path: Path) -> set[str]:
    try:
        with csv.open_csv(path) as reader:
            return set(reader.schema.names)
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "Check the path.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(path), f"not a CSV file ({error})", "Fetch it again.") from error

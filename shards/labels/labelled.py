"""Any source, with labels from catalogues merged into the metadata of its samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from astroclip_dist.errors import ConfigError, DataError
from shards.labels.label_file import LabelFile
from shards.sample import Sample
from shards.source import Origin, Source

log = logging.getLogger(__name__)


class Labelled(Origin):
    """A source whose samples have labels too, where a table has some of them.

    Args:
        source: of the samples; their ``targetid``, or ``ra`` and ``dec``, tell which labels are theirs.
        labels: files of labels.

    Raises:
        DataError: a file cannot be used.
        ConfigError: two files have a label of the same name.
    """

    def __init__(self, source: Source, labels: Sequence[LabelFile]) -> None:
        self.name = source.name
        self.image, self.spectrum, self.ivar = source.image, source.spectrum, source.ivar
        self._source, self._labels = source, tuple(labels)
        owner: dict[str, LabelFile] = {}
        for file in self._labels:
            for name in file.load().label_names:
                if name in owner:
                    raise ConfigError("--labels", name, f"Both {owner[name].path} and {file.path} have this label.")
                owner[name] = file

    def describe(self) -> dict[str, str | int | float | bool | None]:
        described = self._source.describe()
        for file in self._labels:
            table = file.load()
            way = "targetid" if table.by_targetid else f"position within {table.radius_arcsec:g} arcsec"
            described[f"labels_{file.kind}"] = f"{file.path.name}: {len(table)} galaxies by {way}"
        return described

    @property
    def partitions(self) -> int:
        return self._source.partitions

    def keys(self, partition: int) -> Sequence[str]:
        return self._source.keys(partition)

    def read(self, partition: int, rows: Sequence[int]) -> Iterator[Sample | DataError]:
        asked, searchable = 0, [0] * len(self._labels)
        for sample in self._source.read(partition, rows):
            if isinstance(sample, Sample):
                asked += 1
                for number, file in enumerate(self._labels):
                    searchable[number] += file.load().can_find(sample)
                    _merge(sample, file)
            yield sample
        for file, found in zip(self._labels, searchable, strict=True):
            if asked and not found:
                wanted = "targetid" if file.load().by_targetid else "ra and dec"
                log.warning("none of %d samples has %s: no labels of %s", asked, wanted, file.path.name)


def _merge(sample: Sample, file: LabelFile) -> None:
    for name, value in file.find(sample).items():
        if name in sample.metadata and sample.metadata[name] != value:
            raise ConfigError(
                f"{file.path}: column {name}",
                f"{value} for sample {sample.key}",
                f"The sample says {sample.metadata[name]}: rename the column.",
            )
        sample.metadata[name] = value

"""What all samples of a dataset have in common, and the check that a sample keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.sample import Sample, check_sample
from shards.writing.open_shard import LONGEST_KEY


class HasLayout(Protocol):
    """A source or a manifest."""

    @property
    def image(self) -> ImageLayout | None: ...

    @property
    def spectrum(self) -> SpectrumLayout | None: ...

    @property
    def ivar(self) -> bool: ...


@dataclass(frozen=True)
class Layout:
    """The grids of images and spectra (None: there are none), and whether spectra come with inverse variances."""

    image: ImageLayout | None
    spectrum: SpectrumLayout | None
    ivar: bool

    @classmethod
    def of(cls, owner: HasLayout) -> Self:
        return cls(owner.image, owner.spectrum, owner.ivar)

    def check(self, sample: Sample) -> None:
        """Refuse a sample that does not fit.

        Raises:
            DataError: as :func:`shards.sample.check_sample`; a key too long for a tar header; inverse variances that
                are missing, or there without a spectrum.
        """
        check_sample(sample, self.image, self.spectrum)
        if len(sample.key) > LONGEST_KEY:
            raise DataError(
                f"sample {sample.key}: key", f"{len(sample.key)} characters", f"Use at most {LONGEST_KEY} characters."
            )
        if sample.spectrum is not None and (sample.ivar is not None) != self.ivar:
            raise DataError(
                f"sample {sample.key}: ivar",
                "missing" if self.ivar else "present",
                "Every spectrum of a dataset has inverse variances, or none has.",
            )
        if sample.ivar is not None and sample.spectrum is None:
            raise DataError(f"sample {sample.key}: ivar", "present without a spectrum", "Give both or none.")

"""First values of encoders from runs that pre-trained them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from astroclip_dist.config import RunConfig
from astroclip_dist.config.model import ImageEncoder, SpectrumEncoder
from astroclip_dist.config.objective import ClipAlignment, ImageDino, MaskedSpectrum
from astroclip_dist.errors import ConfigError
from astroclip_dist.models.initial import Pretrained
from astroclip_dist.train.checkpoint import CheckpointReader, resolve_checkpoint
from astroclip_dist.train.run_folder import read_run_config


def pretrained_values(config: RunConfig) -> Pretrained | None:
    """What the run's configuration names as its beginning, None where it begins from nothing.

    Raises:
        ConfigError: the named run trained another kind of encoder, or one with other sizes or inputs.
        DataError: it has no complete checkpoint, or a damaged one.
    """
    objective = config.objective
    if not isinstance(objective, ClipAlignment):
        return None
    sources = {
        f"{modality}_encoder.": _Encoder(f"objective.{modality}_from", url, modality, getattr(objective, modality))
        for modality, url in (("image", objective.image_from), ("spectrum", objective.spectrum_from))
        if url is not None
    }

    def value(name: str, shape: Sequence[int]) -> Tensor | None:
        for prefix, source in sources.items():
            if name.startswith(prefix):
                return source.read(name.removeprefix(prefix), tuple(shape))
        return None

    return value if sources else None


class _Encoder:
    """One encoder in the newest checkpoint of a run."""

    def __init__(self, field: str, url: str, modality: str, wanted: ImageEncoder | SpectrumEncoder) -> None:
        self._field, self._url = field, url
        run, checkpoint = resolve_checkpoint(url)
        trained = read_run_config(run).objective
        self._prefix = "model." + self._where(trained, modality)
        self._compare(getattr(trained, modality), wanted)
        # Manifest and listing are read once, then each tensor once, when its turn comes.
        self._reader = CheckpointReader(checkpoint)
        self._reader.check_files()

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor of the encoder, float32, on the CPU."""
        whole = self._prefix + name
        stored = self._reader.manifest["tensors"].get(whole)
        found = "missing" if stored is None else f"shape {tuple(stored['shape'])}"
        if stored is None or tuple(stored["shape"]) != shape:
            raise ConfigError(
                self._field,
                self._url,
                f"Its {whole} is not what this model needs: {found}, not {shape}. "
                "The datasets' layouts and the encoders' sizes must agree.",
            )
        return self._reader.read(whole)

    def _where(self, trained: object, modality: str) -> str:
        if isinstance(trained, ImageDino) and modality == "image":
            return "teacher.encoder."
        if isinstance(trained, MaskedSpectrum) and modality == "spectrum":
            return "encoder."
        if isinstance(trained, ClipAlignment):
            return f"{modality}_encoder."
        raise ConfigError(self._field, self._url, f"It trained no {modality} encoder.")

    def _compare(self, trained: ImageEncoder | SpectrumEncoder, wanted: ImageEncoder | SpectrumEncoder) -> None:
        """Equal shapes are not enough: another stretch or slicing would go unnoticed."""
        before, after = trained.model_dump(), wanted.model_dump()
        for name in before:
            if before[name] != after[name]:
                modality = self._field.removesuffix("_from")
                raise ConfigError(
                    f"{modality}.{name}",
                    after[name],
                    f"The encoder of {self._url} was trained with {name} = {before[name]}: set it to that.",
                )

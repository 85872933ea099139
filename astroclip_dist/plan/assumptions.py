"""What a plan takes as given because it cannot know it: each number has an option, and is printed with its source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from astroclip_dist.errors import ConfigError

_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_BYTES_A_SECOND = {"Gb/s": 1.25e8, "Mb/s": 1.25e5, "Tb/s": 1.25e11, "GB/s": 1e9, "MB/s": 1e6}
_FLOPS = {"TFLOP/s": 1e12, "GFLOP/s": 1e9, "PFLOP/s": 1e15}
_SECONDS = {"min": 60.0, "s": 1.0, "h": 3600.0}
_PLAIN = {"": 1.0}
_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)\s*([a-zA-Z/]*)\s*")


@dataclass(frozen=True)
class Quantity:
    """A number that the command line may give.

    Attributes:
        option: without dashes.
        what: it is, for ``--help`` and for the list of assumptions.
        units: each unit's size; the first is the example in errors.
        usual: what is taken where nobody says; None: nothing is.
        why: where ``usual`` comes from.
        most: it may be; whole numbers only, where ``whole``.
    """

    option: str
    what: str
    units: Mapping[str, float]
    usual: str | None = None
    why: str = ""
    most: float = float("inf")
    whole: bool = False

    @property
    def name(self) -> str:
        return self.option.replace("-", "_")

    def read(self, text: str) -> float:
        """The number in the base unit.

        Raises:
            ConfigError: not above 0, or without one of the units.
        """
        match = _QUANTITY.fullmatch(text)
        number = float(match[1]) * self.units.get(match[2], 0.0) if match else 0.0
        if not 0 < number <= self.most or number == float("inf") or (self.whole and number != int(number)):
            wanted = "a whole number" if self.whole else "a number"
            limits = "above 0" if self.most == float("inf") else f"above 0 and at most {self.most:g}"
            units = "" if "" in self.units else f", with its unit, one of {', '.join(self.units)}"
            raise ConfigError(f"--{self.option}", repr(text), f"Write {wanted} {limits}{units}.")
        return number


QUANTITIES = (
    Quantity("device-memory", "memory of a GPU", {"GB": 1e9, **_BYTES}),
    Quantity("device-flops", "peak of a GPU in the run's precision", _FLOPS),
    Quantity(
        "mfu",
        "share of the peak that goes into progress",
        _PLAIN,
        "0.4",
        "0.38 to 0.43 in Llama 3; less for small models",
        most=1.0,
    ),
    Quantity("gpus-per-node", "GPUs of a node", _PLAIN, "8", "usual", whole=True),
    Quantity("bandwidth", "a node's, to and from object storage", _BYTES_A_SECOND, "10 Gb/s", "modest; measure yours"),
    Quantity("interconnect", "a node's, to the other nodes", _BYTES_A_SECOND, "400 Gb/s", "one port of InfiniBand NDR"),
    Quantity("copy-rate", "from a GPU to its host, for saves", _BYTES_A_SECOND, "10 GB/s", "half of PCIe 4 x16"),
    Quantity(
        "failure-every",
        "GPU-hours from failure to failure",
        _PLAIN,
        "50_000",
        "419 in 54 days on 16,384 H100: Llama 3, Grattafiori et al. 2024, section 3.3.4",
    ),
    Quantity("restart-time", "from a failure to the next new step", _SECONDS, "10 min", "queue, start, load"),
    Quantity("samples", "of the training split", _PLAIN, whole=True),
    Quantity("sample-bytes", "of one sample in its shard", {"kB": 1e3, **_BYTES}),
)


@dataclass(frozen=True)
class Assumption:
    """One line of the list: a number, and where it comes from."""

    what: str
    value: str
    source: str


@dataclass
class Assumptions:
    """The numbers of a plan, and the list of all that were asked for, in that order.

    Raises:
        ConfigError: one that is given is none.
    """

    _given: Mapping[str, str]
    listed: list[Assumption] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Also of what this run has no use for; and before dry runs, which take minutes.
        for quantity in QUANTITIES:
            if (text := self._given.get(quantity.name)) is not None:
                quantity.read(text)

    def given(self, name: str) -> float | None:
        """The number of an option, None if it was not given and nothing is usual."""
        quantity = next(quantity for quantity in QUANTITIES if quantity.name == name)
        text = self._given.get(name)
        value = quantity.usual if text is None else text
        if value is None:
            return None
        source = f"--{quantity.option}" if text is not None else f"assumed: {quantity.why}; --{quantity.option}"
        self.add(quantity.what, value, source)
        return quantity.read(value)

    def number(self, name: str) -> float:
        """The number of an option for which something is usual."""
        number = self.given(name)
        assert number is not None
        return number

    def add(self, what: str, value: str, source: str) -> None:
        """List another one; the same once."""
        if (line := Assumption(what, value, source)) not in self.listed:
            self.listed.append(line)

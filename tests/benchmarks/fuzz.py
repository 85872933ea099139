"""Broken and hostile datasets that were neither refused, nor quarantined, nor read rightly, over all that were tried.

Each case breaks a copy of a small dataset (see ``fuzz_mutations``) and then does what people do with datasets: streams
an epoch with a quarantine, looks single samples up, verifies, describes. Good are: an error that names what is wrong;
samples put aside and counted; or samples that are bit for bit what the dataset held. Bad are: another value (where
chance damaged the files), any other exception, a crash of the process, more than 20 seconds, a file written outside of
the dataset, anything unpickled. The cases are drawn from their numbers alone: ``--first 123 --cases 1`` repeats one.
"""

from __future__ import annotations

import contextlib
import io
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np

from astroclip_dist.config.run import Reading
from astroclip_dist.data.ordering.mixture import order_of
from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.data.reading.lookup import SampleLookup
from astroclip_dist.data.reading.quarantine import Quarantine
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.data.streaming.stream import Stream
from astroclip_dist.errors import UserError
from shards.checking.verify import verify
from shards.showing.info import describe
from tests.benchmarks.fuzz_mutations import damage, malice
from tests.benchmarks.result import Result, measure_parser, print_result
from tests.random_survey import random_sample, write_random_survey

IMAGE, SPECTRUM = ImageLayout(size=8), SpectrumLayout(size=20)
MEMBERS = ("image", "spectrum", "ivar")
SAMPLES, SHARD, BATCH = 40, 8, 8
DEADLINE_S = 20.0
CASES = {"small": 120, "default": 2000, "large": 20_000}
GOOD = ("refused", "quarantined", "read rightly", "read as the hostile files say")


def is_right(key: str, member: str, array: np.ndarray) -> bool:
    if not key.startswith("random-"):
        return False
    return np.array_equal(array, getattr(random_sample(key, IMAGE, SPECTRUM), member))


def stream_an_epoch(url: str) -> tuple[int, bool]:
    """Samples put aside, and whether all values read were right."""
    dataset = Dataset.open([url], ["train"])
    order = order_of(dataset, seed=1, lanes=2, global_batch=BATCH, window_shards=2)
    quarantine = Quarantine()
    # So little memory that absurd sizes are refused before they are tried.
    reading = Reading(memory=100_000_000)
    right = True
    with Stream(
        dataset, order, MEMBERS, rank=0, world_size=1, cursor=Cursor(), reading=reading, quarantine=quarantine
    ) as stream:
        for batch in islice(stream, min(order.steps_per_epoch, 100)):
            for at, key in enumerate(batch.keys):
                right &= all(is_right(key, member, batch.members[member][at].numpy()) for member in MEMBERS)
    return quarantine.samples, right


def look_up(url: str) -> bool:
    lookup = SampleLookup([url])
    right = True
    for entry in lookup.manifests[0].shards[:2]:
        for number in range(SAMPLES):
            # Who looks a sample up knows its key, so a wrong one is an error.
            with contextlib.suppress(UserError):
                array = lookup.read(0, entry.name, 0, "image", f"random-{number}")
                right &= is_right(f"random-{number}", "image", array)
    return right


def try_case(sound: Path, number: int) -> str:
    """What became of one case."""
    random = Random(number)
    with tempfile.TemporaryDirectory(prefix="astroclip-fuzz-") as around:
        folder = Path(around) / "dataset"
        shutil.copytree(sound, folder)
        by_malice = random.random() < 0.4
        what = (malice if by_malice else damage)(folder, random)
        before = sorted(Path(around).rglob("*"))
        outcomes = set()
        for use in (stream_an_epoch, look_up, lambda url: verify(url, io.StringIO()), describe):
            try:
                found = use(folder.as_uri())
            except UserError:
                outcomes.add("refused")
                continue
            if use is stream_an_epoch:
                put_aside, right = found
                outcomes.add("quarantined" if put_aside else "read rightly")
            elif use is look_up:
                right = bool(found)
            else:
                right = True
            if not right:
                outcomes.add("read as the hostile files say" if by_malice else f"WRONG VALUE after {what}")
        if sorted(Path(around).rglob("*")) != before:
            outcomes.add(f"WROTE FILES after {what}")
    bad = sorted(outcome for outcome in outcomes if outcome not in GOOD)
    return bad[0] if bad else next(outcome for outcome in GOOD if outcome in outcomes)


def try_cases(sound: Path, first: int, count: int) -> None:
    """Print the outcome of each case as a line of JSON."""
    for number in range(first, first + count):
        try:
            outcome = try_case(sound, number)
        except Exception as error:
            outcome = f"EXCEPTION {type(error).__name__}: {error}"
        print(json.dumps(outcome), flush=True)


def outcomes(sound: Path, first: int, count: int) -> Iterator[tuple[int, str]]:
    """The cases in processes of their own: one that crashes or hangs is one bad case, and the next process goes on."""
    number, end = first, first + count
    while number < end:
        command = [sys.executable, "-m", "tests.benchmarks.fuzz", "--try", str(sound), str(number), str(end - number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines: queue.Queue[str] = queue.Queue()
            assert process.stdout is not None
            threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
            # The first line waits for imports, too.
            patience = 10 * DEADLINE_S
            while number < end:
                try:
                    line = lines.get(timeout=patience)
                except queue.Empty:
                    process.kill()
                    line = json.dumps("HANG")
                yield number, json.loads(line) if line else f"CRASH, exit code {process.wait()}"
                number, patience = number + 1, DEADLINE_S
                if not line or process.poll() not in (None, 0):
                    break


def _pump(source: Iterator[str], lines: queue.Queue[str]) -> None:
    for line in source:
        lines.put(line)
    lines.put("")


def main() -> None:
    parser = measure_parser(__doc__)
    parser.add_argument("--cases", type=int, help="how many (default: by the size)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    cases = args.cases or CASES[args.size]
    with tempfile.TemporaryDirectory(prefix="astroclip-fuzz-") as folder:
        write_random_survey(folder, SAMPLES, samples_per_shard=SHARD, image=IMAGE, spectrum=SPECTRUM)
        found = dict(outcomes(Path(folder), args.first, cases))
    counts = Counter(found.values())
    bad = {number: outcome for number, outcome in found.items() if outcome not in GOOD}
    print_result(
        Result("fuzz", len(bad) / cases, "<= 0"),
        f"{cases} datasets, broken by chance or by malice",
        ["what became of it", "cases"],
        [
            *([outcome, counts[outcome]] for outcome in GOOD),
            *([f"case {number}: {outcome}"[:160], 1] for number, outcome in list(bad.items())[:20]),
        ],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--try"]:
        try_cases(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()

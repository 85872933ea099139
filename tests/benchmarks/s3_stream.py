"""Batches from an S3 server, in samples a second, over concurrent raw GETs of the same objects.

A real server (SeaweedFS) on the loopback interface shares the machine with one reader at a time, each in a process of
its own, in interleaved rounds: ours, plain webdataset on our tars, litdata and MosaicML Streaming on their own formats,
and GETs of our whole objects that do nothing with the bytes. Two more goals stand below the table: samples a second
over the best of the others (>= 1.5), and CPU of the client a sample over the least that webdataset takes (<= 1/3).

What is counted, and how the others are set, stands in ``s3_readers``. Ours verifies and shuffles, the others do not.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store

from tests.benchmarks.peers import PeerError, environment, install
from tests.benchmarks.result import Result, Size, interleaved, paired_ratio, print_result, size_asked_for
from tests.benchmarks.s3_formats import SAMPLES_PER_SHARD
from tests.benchmarks.s3_readers import Job, Measured

REPOSITORY = Path(__file__).resolve().parents[2]
OBJECT_STORE = REPOSITORY / "ops" / "object_store.py"
BUCKET = "galaxies"
BATCH = 64
THREADS = 2  # the default of a Stream
RAW_GETS = (2, 8)  # at a time; 8 is the default of a Stream
WRITE_LIMIT_S, READ_LIMIT_S = 300, 120
# samples, repeats, workers of the peers
SIZES: dict[Size, tuple[int, int, tuple[int, ...]]] = {
    "small": (128, 1, (1,)),
    "default": (2048, 3, (0, 1, 2)),
    "large": (8192, 5, (0, 1, 2)),
}
PEERS = ("webdataset", "litdata", "streaming")


class Case:
    """One reader with one number of workers; each call reads everything in a new process.

    Attributes:
        readings: of all rounds.
        problem: why there are none, or an empty text.
    """

    def __init__(self, name: str, job: Job, variables: dict[str, str], problem: str = "") -> None:
        self.name, self.job, self.problem = name, job, problem
        self.readings: list[Measured] = []
        self._variables = variables

    def __call__(self) -> float:
        if not self.problem:
            try:
                answer = run_module(
                    "s3_readers", [], self._variables, READ_LIMIT_S, json.dumps(dataclasses.asdict(self.job))
                )
                self.readings.append(Measured(**json.loads(answer.splitlines()[-1])))
            except PeerError as error:
                if self.job.reader not in PEERS:
                    raise
                self.problem = str(error)
        return float("nan")

    @property
    def rates(self) -> list[float]:
        """Samples a second of each round but the first, which warms caches."""
        return [reading.samples / reading.seconds for reading in self.readings[1:]]

    @property
    def cpu_ms(self) -> list[float]:
        """Milliseconds a sample, likewise."""
        return [1e3 * reading.cpu_seconds / reading.samples for reading in self.readings[1:]]


def run_module(name: str, arguments: Sequence[str], variables: dict[str, str], limit_s: float, given: str = "") -> str:
    """What ``python -m tests.benchmarks.NAME`` prints.

    Raises:
        PeerError: it fails, or takes longer than allowed.
    """
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments]
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=variables, input=given, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"not done in {limit_s:.0f} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:120]
        raise PeerError(f"exit code {done.returncode}: {last}")
    return done.stdout


def start_server(folder: Path) -> None:
    """Start it, and put its address and keys into this process's environment."""
    subprocess.run(
        [sys.executable, str(OBJECT_STORE), "start", str(folder), "--bucket", BUCKET],
        check=True,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )
    for line in (folder / "trainer.env").read_text().splitlines():
        name, _, value = line.partition("=")
        os.environ[name] = value


def write_formats(samples: int, folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The galaxies in all formats.

    Returns:
        Environment of each format's reader, and why those that are missing are.
    """
    variables, problems = {"ours": dict(os.environ)}, {}
    for name in ("ours", "litdata", "streaming"):
        try:
            if name != "ours":
                variables[name] = environment(install(name))
            arguments = [name, f"s3://{BUCKET}/{name}", str(samples), str(folder / name)]
            run_module("s3_formats", arguments, variables[name], WRITE_LIMIT_S)
        except PeerError as error:
            if name == "ours":
                raise
            problems[name] = str(error)
            variables.setdefault(name, {})
    return variables, problems


def all_cases(samples: int, workers: Sequence[int], folder: Path) -> dict[str, Case]:
    variables, problems = write_formats(samples, folder)
    shards = [f"ours/train-{number:06d}.tar" for number in range(samples // SAMPLES_PER_SHARD)]
    urls = [f"s3://{BUCKET}/{shard}" for shard in shards]
    signed = obstore.sign(S3Store(BUCKET, client_options={"allow_http": True}), "GET", shards, timedelta(hours=2))
    piped = [f"pipe:curl -s '{url}'" for url in signed]
    cases = {}

    def add(label: str, reader: str, data: str, tars: list[str], counts: Sequence[int], unit: str) -> None:
        for count in counts:
            job = Job(reader, f"s3://{BUCKET}/{data}", tars, samples, BATCH, count)
            name = f"{label}, {count} {unit}{'' if count == 1 else 's'}"
            cases[name] = Case(name, job, variables[data], problems.get(data, ""))

    add("raw GETs", "raw_gets", "ours", urls, RAW_GETS, "thread")
    add("ours", "ours", "ours", [], (1, THREADS), "thread")
    add("webdataset, obstore", "webdataset", "ours", urls, workers, "worker")
    add("webdataset, curl", "webdataset", "ours", piped, workers, "worker")
    add("litdata", "litdata", "litdata", [], workers, "worker")
    add("Streaming", "streaming", "streaming", [], workers, "worker")
    return cases


def check_all_read_the_same(cases: Sequence[Case], samples: int) -> None:
    """Raises RuntimeError when readers did not read the same galaxies, each once."""
    read = {case.name: (reading.samples, reading.digest) for case in cases for reading in case.readings}
    if len(set(read.values())) != 1 or next(iter(read.values()))[0] != samples:
        raise RuntimeError(f"the readers read different galaxies, so the comparison means nothing: {read}")


def fastest_of(cases: Sequence[Case]) -> Case:
    return max(cases, key=lambda case: statistics.median(case.rates))


def goal_line(what: str, result: Result) -> str:
    return f"{what}: {result.ratio:.3g}, goal {result.goal}: {'holds' if result.holds else 'does not hold'}"


def main() -> None:
    samples, repeats, workers = SIZES[size_asked_for(__doc__)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped, too
    with tempfile.TemporaryDirectory(prefix="astroclip-s3-stream-") as folder:
        start_server(Path(folder) / "server")
        try:
            cases = all_cases(samples, workers, Path(folder))
            interleaved(cases, repeats)
        finally:
            stop = [sys.executable, str(OBJECT_STORE), "stop", str(Path(folder) / "server"), "--grace", "0"]
            subprocess.run(stop, check=True, timeout=60, stdout=subprocess.DEVNULL)
    good = {name: case for name, case in cases.items() if not case.problem}
    check_all_read_the_same([case for case in good.values() if case.job.reader != "raw_gets"], samples)
    raw = fastest_of([case for case in good.values() if case.job.reader == "raw_gets"])
    ours = good[f"ours, {THREADS} threads"]
    peers = [case for case in good.values() if case.job.reader in PEERS]
    fastest = fastest_of(peers)
    thriftiest = min(
        (case for case in peers if case.job.reader == "webdataset"), key=lambda case: statistics.median(case.cpu_ms)
    )
    rows: list[list[object]] = [
        [
            name,
            f"{statistics.median(case.rates):.0f}",
            statistics.median(case.cpu_ms),
            paired_ratio(ours.rates, case.rates),
            paired_ratio(ours.cpu_ms, case.cpu_ms),
        ]
        if not case.problem
        else [name, case.problem, *"---"]
        for name, case in cases.items()
    ]
    over_raw = Result("s3_stream", paired_ratio(ours.rates, raw.rates), ">= 0.8")
    over_peers = Result("s3_stream", paired_ratio(ours.rates, fastest.rates), ">= 1.5")
    cpu = Result("s3_stream", paired_ratio(ours.cpu_ms, thriftiest.cpu_ms), f"<= {1 / 3:.3f}")
    print_result(
        over_raw,
        f"{samples} galaxies of 308 kB, batches of {BATCH}; medians of {repeats} rounds",
        ["", "samples/s", "CPU, ms/sample", "samples/s: ours / this", "CPU: ours / this"],
        rows,
        [
            goal_line(f"samples/s over the best of the others ({fastest.name})", over_peers),
            goal_line(f"CPU over the least of webdataset ({thriftiest.name})", cpu),
            goal_line(f"samples/s over {raw.name}", over_raw),
        ],
    )


if __name__ == "__main__":
    main()

"""Run all measures, print their results together, and write them into the README's table.

python -m tests.benchmarks.run_all [--size small|default|large]

Exit code 0 whether or not the goals hold; 1 when a measure breaks.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.result import Result, Size, size_asked_for

MEASURES = (
    "local_read",
    "s3_stream",
    "resume_time",
    "manifest_scale",
    "augment",
    "shuffle_quality",
    "shard_build",
    "contrastive_memory",
    "comm_volume",
    "dinov2_step",
    "step_overhead",
    "dry_run_memory",
    "checkpoint_stall",
    "recovery_time",
    "kill_loop",
    "fuzz",
)
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
REPOSITORY = Path(__file__).resolve().parents[2]


def run(name: str, size: Size) -> Result | None:
    """Run one measure in a process of its own; None when it breaks."""
    print(f"\n== {name}", flush=True)
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--size", size]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line
    if process.wait():
        return None
    try:
        return parse(last)
    except (ValueError, KeyError):
        return None


def parse(line: str) -> Result:
    """The result in the last line of a measure.

    Raises:
        ValueError, KeyError: there is none, or one that does not agree with itself.
    """
    found = json.loads(line)
    result = Result(found["name"], found["ratio"], found["goal"])
    if result.holds != found["holds"]:
        raise ValueError(line)
    return result


def table(results: list[Result]) -> str:
    """The results in Markdown; each measure is told by the first line of its docstring."""
    lines = ["| measure | what | measured | goal | holds |", "|---|---|---|---|---|"]
    for result in results:
        what = str(importlib.import_module(f"tests.benchmarks.{result.name}").__doc__).splitlines()[0].rstrip(".")
        holds = "yes" if result.holds else "no"
        lines.append(f"| `{result.name}` | {what} | {result.ratio:.3g} | {result.goal} | {holds} |")
    return "\n".join(lines)


def write_into(page: Path, content: str) -> bool:
    """Replace what stands between the two markers of a page; False when it has none."""
    text = page.read_text() if page.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return False
    page.write_text(f"{before}{BEGIN}\n{content}\n{END}{after}")
    return True


def main() -> int:
    size = size_asked_for(__doc__)
    results = {name: run(name, size) for name in MEASURES}
    good = [result for result in results.values() if result is not None]
    broken = [name for name, result in results.items() if result is None]
    print(f"\n{table(good)}")
    if size == "small":
        print("The README is not touched: numbers of size small mean nothing.")
    elif not write_into(REPOSITORY / "README.md", table(good)):
        print(f"README.md has no {BEGIN} ... {END}: nothing written")
    if broken:
        print(f"broken: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

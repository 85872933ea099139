"""Times and amounts as people say them."""

from __future__ import annotations

from datetime import UTC, datetime


def ago(when: str, now: datetime | None = None) -> str:
    """How long ago a time (ISO 8601) was; a clock that was set back since makes it ``just now``."""
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(when)).total_seconds()
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{int(seconds / size)} {unit} ago"
    return f"{int(seconds)} s ago" if seconds >= 1 else "just now"


def clock(when: str) -> str:
    """A time (ISO 8601) to the second, in UTC."""
    return datetime.fromisoformat(when).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def amount(size: float) -> str:
    """Bytes in the decimal unit that suits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def many(count: int, what: str) -> str:
    """``1 worker``, ``2 workers``, ``2 batches``."""
    ending = "" if count == 1 else "es" if what.endswith("ch") else "s"
    return f"{count:,} {what}{ending}"


def table(rows: list[list[str]]) -> list[str]:
    """Lines with their columns, all but the last, as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]

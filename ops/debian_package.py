"""Programs out of a Debian package, without root and without installing it: fetched by apt-get, unpacked into a cache.

    python ops/debian_package.py prometheus usr/bin/promtool      # prints the path of the file

Only for packages whose programs need nothing else of Debian than its C library. The cache is
``~/.cache/astroclip-dist/debian`` (XDG_CACHE_HOME is honoured).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_FETCH_S = 300


class PackageError(Exception):
    """The package cannot be had here; the message says why."""


def program(name: str, package: str) -> Path:
    """A program that is on this machine, else the one of a Debian package.

    Raises:
        PackageError
    """
    found = shutil.which(name)
    return Path(found) if found else packaged_file(package, f"usr/bin/{name}")


def packaged_file(package: str, path: str) -> Path:
    """Where a file of a package lies, after unpacking the package if need be.

    Args:
        path: in the package, without the slash at the beginning.

    Raises:
        PackageError
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "astroclip-dist" / "debian"
    unpacked = cache / package
    if not unpacked.exists():
        _unpack(package, cache)
    if not (unpacked / path).is_file():
        raise PackageError(f"{package}: has no {path}; it lies unpacked in {unpacked}")
    return unpacked / path


def _unpack(package: str, cache: Path) -> None:
    """Whole or not at all; of several at once one wins, with the same result."""
    missing = [command for command in ("apt-get", "dpkg-deb") if shutil.which(command) is None]
    if missing:
        raise PackageError(f"{package}: {' and '.join(missing)} not found. Install the program by other means.")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{package}-", dir=cache) as scratch:
        folder = Path(scratch)
        # Lists of its own: a new machine has none, and only root may fetch the system's.
        lists, archives = folder / "lists", folder / "archives"
        for needed in (lists, archives):
            (needed / "partial").mkdir(parents=True)
        own = ["-qq", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={archives}"]
        _run(package, ["apt-get", *own, "update"], folder)
        _run(package, ["apt-get", *own, "download", package], folder)
        [archive] = folder.glob("*.deb")
        _run(package, ["dpkg-deb", "-x", archive.name, "unpacked"], folder)
        try:
            (folder / "unpacked").rename(cache / package)
        except OSError:
            if not (cache / package).is_dir():
                raise


def _run(package: str, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"{package}: {command[0]} did not end within {_FETCH_S} s") from error
    if done.returncode != 0:
        why = done.stderr.strip().splitlines()[-1:] or ["no word"]
        raise PackageError(f"{package}: {' '.join(command)}: {why[0]}")


if __name__ == "__main__":
    try:
        print(packaged_file(sys.argv[1], sys.argv[2]))
    except IndexError:
        sys.exit(__doc__)
    except PackageError as failure:
        sys.exit(str(failure))

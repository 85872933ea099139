"""Other projects' readers for the measures, each in a folder of its own beside the packages of this environment.

Their requirements would replace half of it (torchvision with another torch, numpy < 2.2, transformers < 5, four cloud
SDKs), so they are installed without dependencies, pinned, and put on the path of a process of their own. What they
import and never use here is replaced by empty modules there.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

FOLDER = Path(sys.prefix) / "benchmark-peers"
INSTALL_TIMEOUT_S = 240
# botocore comes with this environment; boto3 and s3transfer have to fit it.
_S3 = ("boto3==1.43.117", "s3transfer==0.19.3", "jmespath==1.1.0")
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "litdata": ("litdata==0.2.76", "lightning-utilities==0.15.3", *_S3),
    "streaming": (
        "mosaicml-streaming==0.13.0",
        *("brotli==1.2.1", "python-snappy==0.7.3", "cramjam==2.14.0", "zstd==1.5.7.2", "xxhash==4.1.0"),
        *("catalogue==2.0.10", *_S3),
    ),
}
UNUSED = ("torchvision", "transformers", "azure", "google", "oci", "paramiko")


class PeerError(Exception):
    """A peer cannot be had here; the message says why."""


def install(name: str) -> Path:
    """The folder of a peer's packages, made at the first call.

    Raises:
        PeerError: pip fails or takes too long.
    """
    folder = FOLDER / "-".join((name, REQUIREMENTS[name][0].split("==")[1]))
    if folder.exists():
        return folder
    FOLDER.mkdir(exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=FOLDER, prefix="installing-"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(aside)]
    try:
        subprocess.run(
            [*command, *REQUIREMENTS[name]], check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
        )
        aside.rename(folder)
    except subprocess.TimeoutExpired:
        raise PeerError(f"not installed in {INSTALL_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        raise PeerError(f"not installed: {error.stderr.strip().splitlines()[-1][:200]}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """This process's environment with a peer's packages in front."""
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


class _Nothing(types.ModuleType):
    """A module in which every class exists and does nothing."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Nothing(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def without_unused_packages() -> None:
    """From now on, importing a package that peers name but do not need here gives empty modules, if it is absent."""
    sys.meta_path.append(_Unused())

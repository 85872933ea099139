"""``astroclip embed`` and ``astroclip search``: galaxies to embeddings, and from one galaxy to its nearest."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from astroclip_dist.data.stored.manifest import SPLITS
from astroclip_dist.embed.table import MODALITIES, EmbeddingFolder
from astroclip_dist.errors import ConfigError


def add_parser(subparsers: Any) -> None:
    """Add both to the command; ``args.run(args)`` does the work and gives the exit code."""
    _add_embed(subparsers)
    _add_search(subparsers)


def _add_embed(subparsers: Any) -> None:
    parser = subparsers.add_parser("embed", help="embeddings of a dataset as Parquet, logged to MLflow")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="URL of a run or of one of its checkpoints")
    parser.add_argument("dataset", metavar="DATASET", nargs="+", help="URL of a dataset")
    parser.add_argument("out", metavar="OUT", help="folder of the embeddings: a path or s3://bucket/prefix")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="which splits (default: all)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="galaxies in one pass (default 64)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    parser.set_defaults(run=run_embed)


def _add_search(subparsers: Any) -> None:
    parser = subparsers.add_parser("search", help="nearest galaxies, in one modality or across")
    parser.add_argument("embeddings", metavar="EMBEDDINGS", help="folder of embeddings: a path or s3://bucket/prefix")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--key", help="the galaxy to start from")
    query.add_argument("--vector", type=Path, metavar="FILE.npy", help="an embedding to start from")
    parser.add_argument(
        "--query", choices=MODALITIES, default="image", help="which embedding of the galaxy (default image)"
    )
    parser.add_argument("--among", choices=MODALITIES, default="image", help="what is searched (default image)")
    parser.add_argument("-k", type=int, default=8, help="how many (default 8)")
    parser.add_argument("--json", action="store_true", help="print JSON, with all metadata")
    parser.set_defaults(run=run_search)


def run_embed(args: argparse.Namespace) -> int:
    """Embed, and say what is there now."""
    # torch and MLflow take seconds to load: only for those who embed.
    import torch

    from astroclip_dist.embed.export import export_embeddings

    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    manifest = export_embeddings(
        args.checkpoint,
        args.dataset,
        args.out,
        splits=args.splits,
        batch_size=args.batch_size,
        device=torch.device(automatic if args.device == "auto" else args.device),
    )
    embedded = " and ".join(f"{modality} ({size} numbers)" for modality, size in manifest.sizes.items())
    print(f"{manifest.rows:,} galaxies: {embedded}")
    return 0


def run_search(args: argparse.Namespace) -> int:
    """Search and print. Within one modality the galaxy itself is left out; across, its own partner may be found."""
    # torch takes seconds to load: only for those who search.
    from astroclip_dist.embed.search import find_vector, format_neighbours, nearest

    folder = EmbeddingFolder(args.embeddings)
    vector = find_vector(folder, args.key, args.query) if args.key else _read_vector(args.vector)
    itself = args.key if args.key and args.query == args.among else ""
    neighbours = nearest(folder, vector, args.among, args.k, leave_out=itself)
    if args.json:
        print(json.dumps([{"cosine": found.cosine, **found.galaxy} for found in neighbours]))
    else:
        print(format_neighbours(neighbours))
    return 0


def _read_vector(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError) as error:
        raise ConfigError("--vector", path, f"Not a .npy file of numbers: {error}") from error

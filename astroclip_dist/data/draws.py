"""Random numbers that depend on what they are for, and on nothing else.

A draw is a pure function of (seed, epoch, what, which): no generator state exists that a restart, a rank or a reader
thread could change. The mixing function is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"), used as a counter-based generator; its integers are the same on every platform and numpy version.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def stream_key(purpose: str, *numbers: int) -> int:
    """A 64-bit key for one purpose ("window", "crop", ...) and its coordinates (seed, epoch, lane, ...)."""
    text = f"{purpose}:{','.join(map(str, numbers))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniform(key: int, samples: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), keyed by sample.

    Args:
        key: from ``stream_key``.
        samples: (n,) uint64 identities of samples (``manifest.key_hash``).
        count: draws a sample.

    Returns:
        (n, count) float64, 53 random bits each.
    """
    with np.errstate(over="ignore"):
        base = _mix(samples.astype(np.uint64) + np.uint64(key))[:, None]
        counters = (np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)[None, :]
        bits = _mix(base + counters)
    return (bits >> np.uint64(11)) * 2.0**-53


def in_epochs(samples: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """Identities of samples in an epoch of theirs: another in each, (n,) uint64.

    Args:
        samples: (n,) uint64 identities; epochs: (n,) int64.
    """
    with np.errstate(over="ignore"):
        return _mix(samples.astype(np.uint64) + epochs.astype(np.uint64) * _GOLDEN)


def permutation(key: int, size: int) -> np.ndarray:
    """A random permutation of range(size), (size,) int64, from its key alone."""
    with np.errstate(over="ignore"):
        bits = _mix(np.uint64(key) + np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN)
    return np.argsort(bits, kind="stable")

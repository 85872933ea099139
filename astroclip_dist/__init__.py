"""Pre-training of AstroCLIP-like galaxy foundation models at survey scale."""

__version__ = "0.1.0"

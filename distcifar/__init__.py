"""distcifar: small-image classifiers from one card (or none) to a cluster, with the same numbers."""

__version__ = "0.1.0"

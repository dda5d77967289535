"""Sparse, category-computing circuits in convolutional networks (Andrade & Konkle, 2025)."""

__version__ = "0.1.0"

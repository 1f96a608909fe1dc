"""Weights of other projects under our names, and back: ``python -m yolof_d2.convert --help``."""

from __future__ import annotations

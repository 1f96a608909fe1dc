"""Convert weights of other projects to ours, and back: ``python -m yolof_d2.convert --help``."""

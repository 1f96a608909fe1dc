"""Measurements: scalars of a training, memory, cost of a model, and where a run came from."""

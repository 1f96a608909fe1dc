"""Measure the cost of detectors side by side, part by part.

The parts are the same for every model: the backbone (the network under the pyramid, where there is
one), the encoder (YOLOF's, or the rest of the pyramid), the decoder (or head), and behind it
matching and loss in training, post-processing in inference.
"""

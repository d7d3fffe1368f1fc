"""Formats of weights: how a checkpoint stores a projection, and how it lies on the device."""

"""Checkpoints of a training as models, to choose among them."""

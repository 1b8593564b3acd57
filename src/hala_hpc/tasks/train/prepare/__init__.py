"""Datasets become tokens, once, before a training."""

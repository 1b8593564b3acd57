"""Checkpoints: whole or not used; and the model in one as a folder that others load."""

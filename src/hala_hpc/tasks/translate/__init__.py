"""Texts of a dataset in another language."""

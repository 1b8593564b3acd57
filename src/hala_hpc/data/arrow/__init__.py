"""Rows as Arrow: schemas, columns, and what makes two rows the same."""

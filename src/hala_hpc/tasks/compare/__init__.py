"""Models held against another on the same texts."""

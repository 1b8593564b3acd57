"""Models merged, by mergekit."""

"""Models asked benchmarks: which there are, two harnesses over one engine, results as files, and what they say."""

"""Evaluation of models: benchmarks, two harnesses over one engine, results as files, and what follows from them."""

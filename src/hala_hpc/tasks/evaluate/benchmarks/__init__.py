"""Which benchmarks there are, by name, and questions from folders."""

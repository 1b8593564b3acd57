"""Training sets from runs and files: conditions, prompts, duplicates, sampling, order, and a table of counts."""

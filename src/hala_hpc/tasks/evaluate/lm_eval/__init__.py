"""lm-evaluation-harness over an engine of ours."""

"""LightEval over an engine of ours."""

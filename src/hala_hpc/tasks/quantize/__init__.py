"""A model in fewer bits, by LLM Compressor."""

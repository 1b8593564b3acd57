"""Models as files: where they are, what is in them, whether they are sound, how their folders and cards are written."""

"""Files that rows are read from, wherever they are and however they are written."""

"""Rows in and out: readers, the shapes that people's datasets have, cutting into shards, collecting."""

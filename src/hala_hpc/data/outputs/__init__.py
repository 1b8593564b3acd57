"""Rows as finished shards hold them: picked, compared, counted, collected, done again."""

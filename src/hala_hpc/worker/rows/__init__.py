"""Tasks whose shards are rows: their contract, and the loop that keeps an engine full."""

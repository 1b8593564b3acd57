"""Tasks whose shards are items: their contract, and the loop that does one after the other."""

"""What runs on a compute node: claim a shard, keep the engine full, stop in time, publish."""

"""``task.kind: score``: how near the translations of several systems are to references."""

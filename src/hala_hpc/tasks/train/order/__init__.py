"""Which document is seen in which step, whatever the number of GPUs."""

"""A real Slurm cluster of four pretended nodes on this machine, for tests: see README.md."""

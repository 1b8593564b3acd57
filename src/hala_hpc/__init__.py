"""hala_hpc: make language models speak a new language, on a Slurm cluster, while you sleep."""

__version__ = "0.1.0"

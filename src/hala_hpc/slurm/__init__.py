"""What is known of Slurm: site limits, submission, job states, accounting, and the environments that jobs run in."""

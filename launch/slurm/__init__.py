"""A job on SLURM: what `sbatch` is given, and how it is called."""

"""Slurm: sbatch and what runs in its jobs."""

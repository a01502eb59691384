"""Experiments: model + task + reward + optimizer, and nothing else."""

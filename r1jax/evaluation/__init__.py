"""Measures a policy on held-out problems, benchmarks and with fewer thoughts."""

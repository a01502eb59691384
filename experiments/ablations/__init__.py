"""Ablations: one setting of the recipe changed, everything else the same."""

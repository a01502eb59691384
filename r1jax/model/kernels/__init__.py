"""Attention and grouped products by hand-written kernels."""

"""Pallas kernels: flash attention for TPUs and GPUs, grouped matrix products."""

"""The DeepSeek-R1 recipe in JAX; see docs/architecture.md for the map."""

__version__ = '0.2.0'

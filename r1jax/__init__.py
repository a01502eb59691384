"""The DeepSeek-R1 recipe in JAX; docs/architecture.md has the map."""

__version__ = '0.3.0'

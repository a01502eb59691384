"""The DeepSeek-R1 recipe in JAX; see README.md for the map of the house."""

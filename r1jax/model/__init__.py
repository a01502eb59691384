"""Decoder models in flax.linen: the only folder that imports flax."""

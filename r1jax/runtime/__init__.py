"""A run on disk, on screen and over hosts; independent of algorithms and models."""

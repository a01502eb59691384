"""A run on disk, on screen and over hosts; knows no RL."""

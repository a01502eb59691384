"""The loops of R1's stages: the only place where device and host code meet."""

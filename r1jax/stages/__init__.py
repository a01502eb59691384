"""The loops of R1's stages: RL, SFT, rejection sampling, the preference model."""

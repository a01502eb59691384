"""The loops of R1's stages: RL, SFT, rejection sampling, distillation."""

"""Compiles a stage of RL for hardware you do not have and reports what it needs."""

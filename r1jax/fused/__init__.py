"""A whole run of RL as one program: rollout, rewards and updates on the device."""

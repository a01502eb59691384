"""From problems to outputs and their rewards: policy, sampler, rewarder."""

"""From logits to tokens, completions and log-probs."""

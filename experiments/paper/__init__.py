"""The paper's recipe at its own scale, as frozen configs.

In the order of the paper: `r1_zero` (pure RL from the base), `r1` (the four stages),
`distill` (the six students). Their parts: `stage` (types of stages, and the conversion
of the paper's steps to rollouts), `data`, `reward_models`, `evaluation`. `results` has
the paper's results, `choices` the details that it leaves open. `r1_zero` can be
launched; the other modules only hold values.

Sources: [N] is the Nature version of DeepSeek-R1 (s41586-025-09422-z, arXiv
2501.12948v2), [v1] the first arXiv version; 'ours' marks a number that neither gives.
"""

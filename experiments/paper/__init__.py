"""The paper's recipe at its own scale, as frozen configs; nothing here trains.

In the order of the paper: `r1_zero` (pure RL from the base), `r1` (the four stages),
`distill` (the six students), with what they are made of: `stage` (what a stage is, and
how the paper's steps become rollouts), `data`, `reward_models`, `evaluation`.
`results` holds what the paper reached, `choices` what it leaves open.

Sources: [N] is the Nature version of DeepSeek-R1 (s41586-025-09422-z, arXiv
2501.12948v2), [v1] the first arXiv version; 'ours' is a number that neither gives.
"""

"""Measures a policy on held-out problems: pass@k, the stage table, thinking budgets."""

"""The terms of the objective: tables of published functions, one module a table."""

"""Compiles a stage for machines that are not there and reports what it needs."""

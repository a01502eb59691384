"""Benchmarks, a profiler, and the commands that install, run and test."""

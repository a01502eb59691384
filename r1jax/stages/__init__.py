"""Loops, files and logs: the only place where device and host lane meet."""

"""Sharding: axis rules, meshes, placing arrays, constraints inside programs."""

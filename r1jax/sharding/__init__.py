"""Where arrays lie: axis rules, meshes, placing arrays, constraints in programs."""

"""The synthetic world of the miniature: its corpus, its writers and its judge."""

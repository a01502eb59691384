"""One setting changed, everything else the same: what of the recipe does what."""

"""A search over recipes, as files and plain values: what is tried, what came of it, who wins. Nothing knows of Ray."""

"""What a run leaves: its directory, and what W&B and the model registry are given of it."""

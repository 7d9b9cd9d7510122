"""From a run directory to W&B: what is sent, by whom, and what was fetched back."""

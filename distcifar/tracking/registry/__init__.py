"""The model registry: aliases with gates, history and roll-back, in files."""

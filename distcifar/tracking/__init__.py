"""What a run leaves: its directory, and later the services that are fed from it."""

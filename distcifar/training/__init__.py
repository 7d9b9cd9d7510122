"""The training loop and what it needs: torch only, no vendor of clusters or tracking."""

"""What the numbers look like."""

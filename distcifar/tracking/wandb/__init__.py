"""The only package that imports wandb."""

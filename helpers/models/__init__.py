"""The networks of the studies and their training."""

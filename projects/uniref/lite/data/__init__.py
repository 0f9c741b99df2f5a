"""Training sets for all tasks from a few labelled images and clips, deterministic by seed."""

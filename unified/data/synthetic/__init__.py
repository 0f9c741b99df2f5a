"""A small made world and its writers: every released dataset format, deterministic by seed."""

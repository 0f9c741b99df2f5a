"""Models as programs that run without their Python: written by ``programs``, run by ``runtime``."""

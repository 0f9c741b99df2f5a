"""Configuration, model building and training on top of Detectron2."""

from __future__ import annotations

import unified.dependencies  # noqa: F401  # before Detectron2, whose warnings it filters

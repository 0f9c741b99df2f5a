"""Configuration, model building and training on top of Detectron2."""

from __future__ import annotations

import warnings

# Detectron2's dependency fvcore scripts two losses on import, which newer torch announces to drop.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

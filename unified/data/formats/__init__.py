"""Readers of the released dataset formats; plain Python and numpy, no Detectron2 and no torch."""

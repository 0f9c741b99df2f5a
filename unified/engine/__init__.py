"""Configuration, model building and training on top of Detectron2."""

"""From files on disk to training batches: formats, catalog, augmentation, mappers, loader."""

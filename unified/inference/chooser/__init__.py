"""Which of the things in an image a sentence means: candidates first, then a choice among them.

A segmenter finds more than it tells apart: among its masks one is right far more often than its
first one is. This folder gathers those masks, describes each once per image, and lets small
networks choose. Nothing outside needs it: without the folder, images are asked as clips are.
"""

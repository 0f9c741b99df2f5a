"""What only the lite model has: names, losses for training, its data recipe.

Nothing outside this folder needs it: ``projects.uniref.config`` adds it where it is there.
"""

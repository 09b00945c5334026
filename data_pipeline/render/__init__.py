"""Assets to samples: Blender worker processes (`blender/`) and the farm that drives them.

Nothing is imported here: the workers, which live in Blender's own environment, pass through too.
"""

"""The Blender side: runs in Blender's own environment, as worker processes of `render.farm`."""

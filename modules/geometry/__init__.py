"""Cameras, meshes, rasterisation, distance fields and textures: numpy, no learning."""

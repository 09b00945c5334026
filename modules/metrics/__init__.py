"""Figures of merit of meshes: geometry, appearance, soundness."""

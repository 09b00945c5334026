"""What can be told about hostile or broken files before Blender opens them: one file a format."""

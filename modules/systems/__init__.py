"""Training recipes: LightningModules, one file each."""

"""Relief's models: their parts, the recipes that train them, and inference."""

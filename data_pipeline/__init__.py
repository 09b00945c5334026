"""Assets in, verified WebDataset shards out, and the loaders that read them back."""

"""From shards to batches: one global order, random access, exact resume."""

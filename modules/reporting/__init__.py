"""Reports that a person reads: pictures, charts and self-contained pages."""

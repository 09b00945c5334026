"""Shards: plain USTAR tars that stock webdataset reads, a manifest that names every byte of them."""

"""Shards: plain USTAR tars that stock webdataset reads, and a manifest that vouches for them."""

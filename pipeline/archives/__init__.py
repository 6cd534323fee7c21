"""What knows pixels: the Zarr archive of one evaluation set, and one module per kind of source."""

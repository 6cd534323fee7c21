"""Test-time merging of medical vision-language models at archive scale: precompute once, then serve."""

"""Checks of what a figure may be trusted for: pure functions from hashes, thumbnails and names to findings."""

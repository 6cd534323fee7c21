"""Who runs parts. Every engine takes the same items and workers and leaves the same files."""

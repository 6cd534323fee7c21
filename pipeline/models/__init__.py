"""What knows open_clip and timm: architectures, checkpoints, heads and scoring. Knows nothing of archives."""

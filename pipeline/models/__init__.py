"""What knows open_clip: architectures, checkpoints, class embeddings and scoring. Knows nothing of archives."""

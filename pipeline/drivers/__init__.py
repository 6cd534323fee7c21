"""What a command does: check everything first, list what is missing, hand it to an engine, record what it cost."""

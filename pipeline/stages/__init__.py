"""What one part's work is: from a part's description to tables, and their commit. Knows no engine."""

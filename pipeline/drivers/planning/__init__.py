"""What ``pipeline plan`` counts, measures and adds up, before anything is run."""

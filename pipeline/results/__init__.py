"""What comes out of a run: metrics with their integrity checks, tables for the terminal and the report page."""

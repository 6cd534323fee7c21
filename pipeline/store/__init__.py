"""What knows files: Parquet parts with fingerprints, atomic commit, the run directory, the lease, the ledger."""

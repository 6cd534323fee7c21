"""Pure functions from logits to coefficients and from coefficients to batches: arrays in, arrays out, no I/O."""

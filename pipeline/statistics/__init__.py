"""Pure statistics of classifications: arrays in, arrays out, no I/O; scikit-learn and scipy do what they have."""

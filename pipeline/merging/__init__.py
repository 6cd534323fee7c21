"""Pure merging of weights: tensors in, tensors out; knows neither models nor files."""

"""File formats: weights, tokenizers, pickles that are read without running them."""

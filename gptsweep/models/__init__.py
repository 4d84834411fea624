"""Model architectures, packed linear layers, and readers for the files that models are stored in."""

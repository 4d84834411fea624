"""Architectures, their packed linear layers, and the files that models come in."""

"""Samples to numbers: metrics, statistics, the frames that people and pages read."""

"""Hydra's side of a sweep: launchers, sweepers, composition of points, and all use of Hydra's private API."""

"""Hydra's side of a sweep: launcher, composition, the private API of Hydra in one place."""

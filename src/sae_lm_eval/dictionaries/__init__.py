"""Sparse autoencoders and transcoders: their specs, their loaders, and the one type that all of these give."""

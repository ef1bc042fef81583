"""Curvature products: what `soae_ext.hvp` is made of."""

"""The restarted solver: what `soae_ext.gmres` is made of."""

"""Internals of soae_ext.krylov: building the decomposition, and the small dense problems on it."""

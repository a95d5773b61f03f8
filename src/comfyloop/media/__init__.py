"""Bytes of pictures, and what a model sees of them; later sound, film, meshes and series."""

"""Engines as processes: how each kind is started and watched, and the protocol that all of them speak."""

"""Fused forward and backward passes."""

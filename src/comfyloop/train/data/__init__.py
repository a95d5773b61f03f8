"""Rows as tensors: encoded, packed and put into batches."""

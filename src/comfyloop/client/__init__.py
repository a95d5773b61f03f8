"""A Python client of a running service, and what the command line prints of it."""

"""Specs of runs, by kind of run, and the libraries that they need. Imports no torch."""

"""People who do not exist, with preferences that they never state: what `bench/flywheel.py` learns from."""

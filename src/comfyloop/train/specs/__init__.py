"""What a run is to do, for each kind of run, and what it needs. Imports no torch."""

"""Two image versions drawn side by side and compared."""

"""Which engine and which version answer for a name, and how that changes while requests run."""

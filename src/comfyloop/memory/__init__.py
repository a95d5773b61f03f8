"""Looks at a base model and at the machine for a plan of its memory; `models.memory` has the arithmetic."""

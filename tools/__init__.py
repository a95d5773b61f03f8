"""What made the shipped weights, answers and pictures: run from a checkout, not part of the wheel."""

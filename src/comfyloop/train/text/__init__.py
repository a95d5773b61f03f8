"""Language models, with and without sight, as they are trained."""

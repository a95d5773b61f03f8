"""Training of language models, with and without vision."""

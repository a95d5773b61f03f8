"""A trainer that has imported its libraries and read its model, and is forked for each run."""

"""Code that trainer and engine share, so that a model is served with the same inputs as it was trained on."""

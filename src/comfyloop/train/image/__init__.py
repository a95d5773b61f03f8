"""The image side of training: checkpoints, latents, losses, LoRA files. The recipes are in train/recipes."""

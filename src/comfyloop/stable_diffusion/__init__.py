"""What every Stable Diffusion checkpoint shares and none carries: CLIP's tokenizer, and where its tensors go.

Neither module imports torch.
"""

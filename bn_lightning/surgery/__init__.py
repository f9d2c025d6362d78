"""Changes to, and guarded runs of, any nn.Module."""

"""The method in plain PyTorch; imports nothing else of the package."""

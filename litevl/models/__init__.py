"""What is peculiar to a model family, and all that touches transformers."""

"""A server under good, bad and vanishing clients for hours: at the end nothing is left."""

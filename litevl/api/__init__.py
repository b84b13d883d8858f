"""HTTP and JSON, text in and text out. Imports no torch and no transformers."""

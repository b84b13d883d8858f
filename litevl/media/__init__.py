"""A reference in a message -> pixels. Imports no torch, nor anything that does.

`sources` reads the part, `fetch` downloads, `decode` opens untrusted bytes inside the killable
children of `workers`, and `loader` puts them together.
"""

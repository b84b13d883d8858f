"""Ids and features in, ids out: what runs next, one forward pass, sampling. No HTTP, no text."""

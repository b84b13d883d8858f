"""Everything that makes and judges the demo checkpoint; the server imports none of it."""

"""What looks after the source; the server imports none of it."""

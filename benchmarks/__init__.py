"""Programs that measure litevl: each prints a table and ends in one JSON line. See README.md."""

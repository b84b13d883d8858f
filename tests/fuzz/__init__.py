"""Coverage-guided fuzzing of the parsers that face the world: `make fuzz`."""

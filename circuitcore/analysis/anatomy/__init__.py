"""A circuit from the inside: what of it is alive, what passes through each unit, what it sees."""

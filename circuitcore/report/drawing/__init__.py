"""A circuit as a picture: large, with what its units see, or small, for a page."""

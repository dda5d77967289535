"""What a run folder keeps of single images: what circuits said of them, which drive its units."""

"""What a search found, from the files in its result folder."""

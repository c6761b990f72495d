"""Bytes to rows: which files are meant, what kind they are, every row with its place."""

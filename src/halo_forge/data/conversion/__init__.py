"""Rows to conversations: the formats of the field, read into one record."""

"""Images and sounds of rows: where their bytes are kept, and what is checked before a model sees them."""

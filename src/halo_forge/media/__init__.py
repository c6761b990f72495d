"""Images and sounds as bytes: where they are, and what is read of them. No torch."""

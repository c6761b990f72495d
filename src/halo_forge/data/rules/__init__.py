"""What is noticed in a conversation: damage to characters, private data, poor answers, language, style."""

"""What is tried before the first step: the masks of the first rows, one real step, and learning one row by heart."""

"""Images and sounds: where their bytes lie, and how they become pixels and samples, safely."""

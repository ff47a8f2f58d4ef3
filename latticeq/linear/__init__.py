"""Linear layers: products straight from what is stored."""

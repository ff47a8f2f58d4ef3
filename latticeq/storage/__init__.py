"""Storage: digits to bytes, and bytes on disk."""

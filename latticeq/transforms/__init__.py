"""Orthonormal transforms applied before quantization."""

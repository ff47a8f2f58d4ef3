"""Codes: lattice points named by digits, and back."""

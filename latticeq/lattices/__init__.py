"""Lattices: closest points, and the geometry that proves them closest."""

from latticeq.lattices import dn, e8

__all__ = ["dn", "e8"]

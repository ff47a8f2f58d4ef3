"""What entropy coding of the scale indices would save: a figure for reports, not a format.

The scales of a union are not used equally often, so their indices carry less than log2 k bits. The
standard library's Huffman coder, on the stored bytes, shows how much less; nothing is stored so,
and no size that latticeq reports counts on it.
"""

from __future__ import annotations

import zlib

from latticeq.storage.formats.base import Packed

__all__ = ["entropy_coded_nbytes"]


def entropy_coded_nbytes(packed: Packed) -> int:
    """Return the bytes that a matrix would take if its scale indices were Huffman coded.

    Parameters
    ----------
    packed : Packed

    Returns
    -------
    int
        ``packed.nbytes`` less what zlib saves on the array ``scale_index``; ``packed.nbytes`` for a
        format that has no such array, or where nothing is saved.

    Notes
    -----
    Indices are drawn block by block with no memory, so zlib's search for repeats finds none: only
    its Huffman coder is used. Where an index has one, two or four bits a byte holds whole indices,
    and the result is within a few percent of their entropy.
    """
    stored = packed.arrays.get("scale_index")
    if stored is None:
        return packed.nbytes
    coder = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    coded = len(coder.compress(stored.tobytes())) + len(coder.flush())
    return packed.nbytes - max(0, stored.nbytes - coded)

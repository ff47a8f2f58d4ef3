"""Formats of quantized matrices, one class a family; `latticeq.storage.checkpoint` lists them."""

"""Quantizers: tensors to digits and scales, minding the Hessian."""

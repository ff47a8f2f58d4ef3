"""The memory of a sequence: keys and values in float32, or in the codes of a quantizer."""

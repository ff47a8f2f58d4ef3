"""The mathematics of latticeq in plain NumPy, one idea a file, to be read beside the papers."""

"""The same bytes on an NVIDIA GPU: kernels in CUDA C++ that CuPy compiles when they are needed."""

"""Launchers: a small class for each kernel, which knows its arguments, its grid and its block.

CuPy, or a stand-in, is always an argument. Launchers check the shapes and dtypes that a kernel relies on, since kernels
check nothing. A launch goes to cupy's current stream.
"""

"""Launchers: one function or small class per kernel, which knows its arguments, its grid and its block.

CuPy, or what stands in for it, is always an argument. Launchers check the shapes and dtypes that a kernel relies on;
the kernels check nothing. A launch goes to cupy's current stream.
"""

"""Unit 10, fused kernels."""

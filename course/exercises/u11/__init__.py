"""Unit 11, the kernels of a mixture of experts."""

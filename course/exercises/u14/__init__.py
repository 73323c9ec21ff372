"""Unit 14, attention kernels."""

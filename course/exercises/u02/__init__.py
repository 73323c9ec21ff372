"""Unit 02, a transformer."""

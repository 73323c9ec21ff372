"""Unit 03, training."""

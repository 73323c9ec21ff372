"""Unit 01, tokens."""

"""Unit 13, eight bits."""

"""Unit 09, Triton puzzles."""

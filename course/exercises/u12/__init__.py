"""Unit 12, the way back through the experts."""

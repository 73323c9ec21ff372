"""Unit 04, mixture of experts."""

"""Unit 05, what DeepSeek changed in the mixture layer."""

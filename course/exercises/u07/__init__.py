"""Unit 07, DeepSeek-V3: several tokens ahead, checkpoints, sampling and speculation."""

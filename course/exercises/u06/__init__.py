"""Unit 06, latent attention."""

"""Digits by class from a latent diffusion model that saw glyphs of fonts first, and then MNIST under differential privacy."""

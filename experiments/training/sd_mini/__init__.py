"""sd-mini: a Stable Diffusion pipeline of a few megabytes, trained on captioned pictures composed from MNIST."""

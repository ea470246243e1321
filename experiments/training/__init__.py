"""Training of small diffusion models on MNIST: named recipes, a resumable loop, export as diffusers folders."""

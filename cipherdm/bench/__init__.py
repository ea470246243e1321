"""Benchmarks: what the approximations and a model's denoising step cost under each set of protocols."""

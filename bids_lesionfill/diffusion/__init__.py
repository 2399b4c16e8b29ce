"""Diffusion models: network, process, sampling of tiles, classical fillers."""

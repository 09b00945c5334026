"""Relief's models: geometry, latents, networks, losses, metrics, systems, callbacks and pipelines."""

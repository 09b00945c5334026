"""2.5D latents: what they mean (spec), how images become them and back (codec), their cache."""

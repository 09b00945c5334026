"""Inference, from exported folders."""

"""Attention with dropout."""

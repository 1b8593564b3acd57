"""Conversations that a model makes up."""

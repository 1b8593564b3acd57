"""Conversations: their turns, what they are to a model, and the templates that render them."""

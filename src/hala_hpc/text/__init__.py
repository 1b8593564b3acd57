"""The craft of translating text: pure functions, nothing of ours below them."""

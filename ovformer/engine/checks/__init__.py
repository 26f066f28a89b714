"""Checks of a config, by what they look at: each yields a message for what is wrong."""

"""Smaller and faster models: what to cut, at which price, and the proof."""

"""Filling and synthesis of lesions: pure functions on images of a visit."""

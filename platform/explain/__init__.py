"""Explanation: which tiles a prediction came from, whether such a map means something, and pictures of it."""

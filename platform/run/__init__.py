"""A run: its folder, its context, and the steps that fill the folder."""

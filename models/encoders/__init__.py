"""Tile encoders: from uint8 tiles to one vector each, behind one ``protocol``, listed in ``entries``."""

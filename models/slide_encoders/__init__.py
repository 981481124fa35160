"""Slide encoders: from a bag of tile features to one vector, behind one ``protocol``, listed in ``entries``."""

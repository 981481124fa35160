"""RNA encoders: from a patient's expression profile to one vector, behind one ``protocol``, listed in ``entries``."""

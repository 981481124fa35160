"""Models on new patients, and how far their predictions can be trusted.

``conformal`` gives sets and intervals with a stated coverage, ``coverage`` measures it.
"""

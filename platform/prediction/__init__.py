"""Models on new patients, and how far their predictions can be trusted.

``conformal`` gives sets and intervals with a stated coverage, ``coverage`` measures it; ``drift`` compares new slides
with a ``reference`` of the training slides, ``quality`` flags slides that are unfit, ``abstention`` joins the three.
"""

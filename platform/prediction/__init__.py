"""Models that leave their run: exported, checked where they arrive, used on new patients, and how far to trust them.

``exported_model`` reads the folder that ``export`` writes, ``predict`` applies it. Calibrated on a run's own
predictions and slides: ``conformal`` makes sets and intervals with a stated coverage, ``drift`` compares new slides
with a ``reference`` of the training slides, ``quality`` flags slides that are unfit, ``abstention`` joins the three.
"""

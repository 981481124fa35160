"""Feature extraction: from slides to a feature store, with a slide as the unit of work.

``params`` is the study's ``features:`` section, ``stages`` processes one slide (no Ray), ``pipeline`` runs the
stages over many slides, on Ray Data or in this process.
"""

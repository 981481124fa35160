"""Feature extraction: slides in, a feature store out, one slide a unit of work.

``params`` is the study's ``features:`` section, ``stages`` what happens to one slide (no Ray), ``pipeline``
how many slides go through the stages on Ray Data, or in this process.
"""

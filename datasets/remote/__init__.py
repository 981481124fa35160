"""Slides, stores and run folders at addresses (``s3://``, ``gs://``, ``file://``, …).

What is used is copied to this machine; a plain path is used where it is.

``addresses`` connects, ``cache`` keeps copies of slides within a bound, ``slide_files`` says which files make a slide,
``folders`` is the folder of a feature store, here or there. ``commits`` are whole states of a folder at an address,
``claims`` its one writer, ``working_copies`` the folder in which that writer works.
"""

"""The report: one self-contained HTML page computed from the files of a run folder and from nothing else.

``run_files`` reads the folder, ``sections`` turn what they find into ``blocks``, ``figures`` and ``drawings``
make the pictures, ``report`` renders the page. Sections are registered in ``entries``.
"""

"""The report: one self-contained HTML page computed from the files of a run folder and from nothing else.

``run_files`` reads the folder, ``sections`` turn its contents into ``blocks`` (text, tables, figures), ``page`` renders
them as HTML. Sections are registered in ``entries``.
"""

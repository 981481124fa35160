"""Built-in cohorts: H&E-like slides, labels, survival and omics with planted biology of known strength.

None of the patients is real. Barcodes begin ``SYN-``, and every label, image description and manifest says
SYNTHETIC. ``generate`` is the interface: ``plan`` → ``write_patient`` (one unit of parallel work) →
``write_tables`` and ``write_manifest`` → ``study_yaml``.
"""

"""Built-in cohorts: H&E-like slides, labels, survival and omics with planted biology of known strength.

Nothing here was ever a patient. Barcodes begin ``SYN-``, and every label, image description and manifest says
SYNTHETIC. ``generate`` is the door: ``plan`` → ``write_patient`` (one unit of parallel work) →
``write_tables`` and ``write_manifest`` → ``study_yaml``.
"""

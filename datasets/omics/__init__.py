"""Tables as inputs: omics and covariates, aligned by name, prepared with what is fitted on training patients.

``matrix`` reads omics, ``covariates`` columns of the clinical table, ``alignment`` puts the cohorts of a study
together; ``transforms`` and ``covariate_transform`` are fitted on training patients and applied to everybody,
``fitting`` does so for all tables of a fold; ``params`` holds the parameters of a study.
"""

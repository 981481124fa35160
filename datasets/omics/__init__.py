"""Tables as inputs: omics and covariates, aligned by name, prepared with what is fitted on training patients.

``matrix`` reads omics, ``covariates`` columns of the clinical table, ``alignment`` puts the cohorts of a study
together; ``transforms`` is fitted on training patients, from the sums of ``statistics``, and applied to everybody
(``logarithms`` come first, ``quantiles`` are what a federation fits them from; ``per_cohort`` keeps cohorts apart;
``components`` come last), ``fitting`` does so for all tables of a fold; ``params`` holds the parameters of a study.
"""

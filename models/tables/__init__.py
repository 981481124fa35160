"""Models that read tables: baselines over covariates and omics, and their fusion with slides.

``model`` holds the baselines ``clinical`` and ``omics``; ``concat`` encodes every modality by a module of its
own and fuses the embeddings; other encoders and fusions can replace them.
"""

"""Path-GPTOmic (arXiv 2403.11375): branches of image and omics, their fusion, and the balance between them."""

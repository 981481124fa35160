"""Training: cases become batches, one loop fits a model on a fold, every fold leaves its predictions behind.

``params`` is what a study says; ``targets`` what training patients fix before training (scalers, class
weights); ``batches`` turns cases into tensors; ``loop`` is the only training loop there is; ``predict`` fills
the predictions table; ``crossval`` runs a fold and reads it back.
"""

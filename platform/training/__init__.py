"""Training: collates cases into batches, fits a model on each fold with one loop, and writes the predictions.

``params`` holds the parameters of a study; ``targets`` fits scalers and class weights on training patients;
``batches`` collates cases into tensors; ``step`` is one optimiser step and ``loop`` the only training loop;
``predict`` fills the predictions table; ``crossval`` trains a fold and loads it again; ``folds`` trains the folds of
a study from its ``inputs``; ``distributed`` and ``on_ray`` let several workers share a fold, or folds run in parallel.
"""

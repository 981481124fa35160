"""Probes: penalised linear models, fitted exactly, on the losses that networks are trained with.

``likelihoods`` are the losses of :mod:`equipoise.models.losses` with their derivatives, ``smooth`` and ``proximal``
the two solvers, ``path`` fits many penalties and ``selection`` chooses one by inner cross-validation.
"""

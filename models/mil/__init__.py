"""Multiple-instance models without a transformer decoder: a bag of tiles becomes one vector, linear heads read it.

``mean_pool`` averages, ``abmil`` weighs tiles by gated attention, ``transmil`` lets tiles attend to each
other first. All take several tasks and have the interface of ``models.base``.
"""

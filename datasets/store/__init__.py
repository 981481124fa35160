"""Parts of the feature store: its specification, its index, shards and staged slides.

Use :class:`equipoise.datasets.features.FeatureStore`; the format is described in ``docs/feature-store.md``.
"""

"""Parts of the feature store: its specification, its index, shards and staged slides.

Use :class:`equipoise.datasets.store.feature_store.FeatureStore`; the format is described in ``docs/feature-store.md``.
"""

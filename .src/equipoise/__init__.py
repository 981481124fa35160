"""Equipoise: tasks, modalities and sites of computational pathology in balance. See :mod:`equipoise.api`."""

__version__ = "0.1.0"

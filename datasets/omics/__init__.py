"""Omics of patients: matrices of patients x genes, read as float32."""

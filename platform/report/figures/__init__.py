"""Figures of the report: plotly specifications as dictionaries, each with its data and a reading aid."""

"""Clients: training on the patients of a site, and the state that stays there."""

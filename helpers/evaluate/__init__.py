"""Measures of where a heat map looks, and how sure a mean is."""

"""Plots, as Plotly figures or SVG."""

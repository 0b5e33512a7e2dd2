"""Draws charts, pictures, SVG, pages, and tables in a terminal. Knows no run."""

"""The browser dashboard: lays out what `analysis` returns. Top layer of the four packages."""

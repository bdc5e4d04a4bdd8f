"""Reports and figures as self-contained HTML and SVG."""

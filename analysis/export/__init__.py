"""Features as files: JSON, CSV and HTML pages."""

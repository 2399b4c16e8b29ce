"""Reports: pictures, pages, methods text, references."""

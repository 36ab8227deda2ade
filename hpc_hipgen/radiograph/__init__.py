"""Hip geometry, phantom films, film reading, captions and dataset layouts."""

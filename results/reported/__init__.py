"""Published numbers, as package data: one JSON file per paper."""

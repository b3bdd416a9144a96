"""Measurements: what is claimed about speed and memory is measured here."""

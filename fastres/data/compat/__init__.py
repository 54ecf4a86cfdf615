"""Imports of packages that need help."""

"""Recipes to their end: accuracy against speed."""
